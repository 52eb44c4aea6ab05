using System.CommandLine;
using Dmp.Host.Demo;
using Dmp.Host.Running;
using Dmp.Kvm.Machine;
using Spectre.Console;

namespace Dmp.Host.Verbs;

/// <summary><c>dmp demo</c>: boots the demo guest, shows how it goes, and ends with a report for people.</summary>
internal static class DemoVerb
{
    // A panic resets the machine at once: the demo is to end, not to stand still.
    private const string CommandLine = "console=ttyS0 panic=-1 dmp.work=demo";
    private const ulong Memory = 512UL << 20;
    private static readonly TimeSpan Limit = TimeSpan.FromMinutes(10);

    /// <summary>Creates the verb.</summary>
    public static Command Create(HostEnvironment host)
    {
        var report = new Option<string?>("--report") { Description = "Write the report in JSON as well", HelpName = "FILE" };
        var command = new Command("demo", "Boot the demo guest, run a short workload, and show what it cost") { report };
        command.SetAction((parsed, _) => RunAsync(host, parsed.GetValue(report)));
        return command;
    }

    private static async Task<int> RunAsync(HostEnvironment host, string? reportPath)
    {
        // Not after the download of a kernel.
        host.RequireKvm();
        GuestImages images = await GuestBuild.RunAsync(host).ConfigureAwait(false);
        var plan = new RunPlan
        {
            Machine = new MachineConfiguration
            {
                KernelPath = images.Kernel,
                InitrdPath = images.Initrd,
                CommandLine = CommandLine,
                MemoryBytes = Memory,
                Patching = true,
            },
            Mode = RunVerb.DmpMode,
            Timeout = Limit,
            ReportPath = reportPath,
        };
        var screen = new DemoScreen();
        FinishedRun finished = await GuestRun.ExecuteAsync(host, plan, screen, run =>
        {
            host.Error.WriteLine($"dmp: booting {images.Kernel}, {run.Cpus} vCPU{(run.Cpus == 1 ? "" : "s")}, {MemorySize.Format(Memory)}");
            return screen.ShowAsync(run, host);
        }).ConfigureAwait(false);
        FailureText.Write(finished, host.Error);

        IAnsiConsole console = host.TextConsole();
        DemoReport.Write(finished.Report, console);

        // Not through the console, which would break the paths to fit the screen.
        await host.Text.WriteLineAsync(
            "\nNext: what this host's KVM can do, and what an exit costs here:\n"
            + "  ./dmp probe\n"
            + "Or boot a guest of your own, and keep the figures; the demo's, to begin with:\n"
            + "  eval \"$(./dmp guest)\"\n"
            + "  ./dmp run --kernel \"$kernel\" --initrd \"$initrd\" --report report.json").ConfigureAwait(false);
        return ExitCodes.Of(finished.Result.Outcome);
    }
}
