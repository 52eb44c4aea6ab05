using Dmp.Actors;
using Dmp.Actors.Console;
using Dmp.Actors.Journal;
using Dmp.Actors.Machine;
using Dmp.Host.Reporting;
using Dmp.Kvm;
using Dmp.Kvm.Machine;

namespace Dmp.Host.Running;

/// <summary>A run that is over.</summary>
/// <param name="Result">What came of it.</param>
/// <param name="Report">Its report.</param>
internal sealed record FinishedRun(MachineResult Result, ReportDocument Report);

/// <summary>One run from the plan to the report, for every verb that runs a guest.</summary>
internal static class GuestRun
{
    /// <summary>Runs a guest.</summary>
    /// <param name="host">What this touches.</param>
    /// <param name="plan">What to run.</param>
    /// <param name="sink">Where guest output goes.</param>
    /// <param name="accompany">What goes on beside the run; awaited before the report is written.</param>
    public static async Task<FinishedRun> ExecuteAsync(
        HostEnvironment host, RunPlan plan, IConsoleSink sink, Func<MachineRun, Task> accompany)
    {
        // What can be known to fail before the guest runs fails before the guest runs.
        ReportFile.Check(plan.ReportPath);
        var settings = ControlSettings.Load(host.SettingsPath);
        JournalConnection? journal = plan.Machine.Patching ? Journal(plan, settings) : null;
        IMachine machine = CreateMachine(host, plan);
        plan = plan with { Machine = plan.Machine with { Cpus = machine.Vcpus.Count } };
        var options = new RunOptions
        {
            Sink = sink,
            Until = plan.Until,
            Timeout = plan.Timeout,
            Journal = journal,
            KernelId = (machine as IMachineFacts)?.KernelId ?? Path.GetFileName(plan.Machine.KernelPath),
            Replay = plan.Replay,
        };
        MachineRun run = MachineRun.Start(machine, options, settings);
        await using (run.ConfigureAwait(false))
        {
            using var signals = new EndingSignals(run);
            await accompany(run).ConfigureAwait(false);
            MachineResult result = await run.Completion.ConfigureAwait(false);

            // Before the machine is disposed: symbols and instructions are read from its memory.
            ReportDocument report = BuildReport(host, plan, result, machine as IMachineFacts);
            ReportFile.Write(plan.ReportPath, report);
            return new FinishedRun(result, report);
        }
    }

    /// <summary>A journal that was asked for has to be there; without the default one a guest can run as well.</summary>
    private static JournalConnection Journal(RunPlan plan, ControlSettings settings)
    {
        if (plan.Journal is null)
        {
            return JournalConnection.Parse(settings.Journal.Connection);
        }

        JournalConnection journal = JournalConnection.Parse(plan.Journal);
        return JournalCheck.TryOpen(journal, out string message)
            ? journal
            : throw new UnusableInputException($"--journal: {message}");
    }

    private static ReportDocument BuildReport(HostEnvironment host, RunPlan plan, MachineResult result, IMachineFacts? facts)
    {
        try
        {
            return ReportBuilder.Build(plan, result, facts);
        }
        catch (Exception failure) when (facts is not null)
        {
            // After a failure the machine may be in no state to be asked. Its counters are still worth a report.
            host.Error.WriteLine($"dmp: the report has no symbols: {failure.Message}");
            return ReportBuilder.Build(plan, result, facts: null);
        }
    }

    private static IMachine CreateMachine(HostEnvironment host, RunPlan plan)
    {
        try
        {
            return host.CreateMachine(plan.Machine);
        }
        catch (Exception failure)
        {
            // The report says so as well, for whoever reads only that; the caller turns the exception into an exit code.
            ReportFile.Write(plan.ReportPath, ReportBuilder.BuildWithoutRun(plan, failure.Message));
            throw;
        }
    }
}
