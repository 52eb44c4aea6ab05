using System.CommandLine;
using Dmp.Actors.Machine;
using Dmp.Host.Running;
using Dmp.Host.Terminal;
using Dmp.Kvm;
using Dmp.Kvm.Machine;

namespace Dmp.Host.Verbs;

/// <summary><c>dmp run</c>: runs any guest, its serial console on stdin and stdout.</summary>
internal static class RunVerb
{
    /// <summary>Full virtualization, nothing patched but silent instructions.</summary>
    public const string TrapMode = "trap";

    /// <summary>Hot instructions are patched.</summary>
    public const string DmpMode = "dmp";

    private const int MaximumCpus = 16;
    private const ulong DefaultMemory = 512UL << 20;

    /// <summary>Creates the verb.</summary>
    public static Command Create(HostEnvironment host)
    {
        var kernel = new Option<string>("--kernel") { Description = "Kernel: a bzImage or an ELF vmlinux", HelpName = "FILE", Required = true };
        var initrd = new Option<string?>("--initrd") { Description = "Initial RAM disk", HelpName = "FILE" };
        var cmdline = new Option<string>("--cmdline")
        {
            Description = "Kernel command line",
            HelpName = "TEXT",
            DefaultValueFactory = _ => "console=ttyS0",
        };
        Option<int?> cpus = OptionParsers.Number("--cpus", "Number of vCPUs [default: 2, where the host can run them]", 1, MaximumCpus);
        cpus.HelpName = "N";
        Option<ulong> memory = OptionParsers.Memory("--memory", $"Guest RAM, for example 1G [default: {MemorySize.Format(DefaultMemory)}]");
        memory.HelpName = "SIZE";
        var mode = new Option<string>("--mode")
        {
            Description = "dmp: hot instructions are patched; trap: full virtualization only",
            HelpName = $"{DmpMode}|{TrapMode}",
            DefaultValueFactory = _ => DmpMode,
        };
        var report = new Option<string?>("--report") { Description = "Write a report in JSON, also when the run fails", HelpName = "FILE" };
        Option<TimeSpan?> timeout = OptionParsers.Seconds("--timeout", "End the run after this time (exit code 5)");
        timeout.HelpName = "SECONDS";
        var until = new Option<string?>("--until") { Description = "End with success when this text stands on the console", HelpName = "TEXT" };
        Option<ushort?> debugExit = OptionParsers.Port("--debug-exit", "A guest write of V to this port exits with (V << 1) | 1");
        debugExit.HelpName = "PORT";

        var audit = new Option<bool>("--audit")
        {
            Description = "Compare the shadow page tables with the guest's own from time to time; a difference ends the run (exit code 70)",
        };

        var journal = new Option<string?>("--journal")
        {
            Description = "Where patches are kept: an SQLite file, or postgres://... [default: dmp.journal.connection in akka.hocon]",
            HelpName = "FILE-or-connection",
        };
        var noReplay = new Option<bool>("--no-replay") { Description = "Do not begin with the patches of earlier runs" };
        var without = new Option<string[]>("--without-template")
        {
            Description = "Do not use this template for patches; may be given more than once",
            HelpName = "NAME",
        };

        // Known by name, so that who asks for it learns why it is not there.
        var trace = new Option<string?>("--trace") { Hidden = true };

        var command = new Command("run", "Run a guest; its serial console is on stdin and stdout (Ctrl-a x ends it)")
        {
            kernel, initrd, cmdline, cpus, memory, mode, report, timeout, until, debugExit, audit, journal, noReplay, without, trace,
        };
        command.Validators.Add(result =>
        {
            if (result.GetResult(mode) is { Implicit: false, Errors: var errors } && !errors.Any()
                && result.GetValue(mode) is { } name && name is not (TrapMode or DmpMode))
            {
                result.AddError($"--mode {name} is not a mode; say --mode {DmpMode} or --mode {TrapMode}");
            }

            foreach (Option option in new Option[] { journal, noReplay, without })
            {
                if (result.GetResult(option) is { Implicit: false } && result.GetValue(mode) == TrapMode)
                {
                    result.AddError($"{option.Name} is about patches; --mode {TrapMode} makes none");
                }
            }

            if (result.GetResult(trace) is { Implicit: false })
            {
                result.AddError($"{trace.Name} is not available in this version");
            }

            if (result.GetResult(until) is { Implicit: false, Errors: var untilErrors } && !untilErrors.Any()
                && string.IsNullOrEmpty(result.GetValue(until)))
            {
                result.AddError("--until needs a text that is not empty");
            }
        });
        command.SetAction((parsed, _) => RunAsync(host, new RunPlan
        {
            Machine = new MachineConfiguration
            {
                KernelPath = Existing("--kernel", parsed.GetRequiredValue(kernel))!,
                InitrdPath = Existing("--initrd", parsed.GetValue(initrd)),
                CommandLine = parsed.GetValue(cmdline) ?? "",
                Cpus = parsed.GetValue(cpus),
                MemoryBytes = parsed.GetResult(memory) is null ? DefaultMemory : parsed.GetValue(memory),
                DebugExitPort = parsed.GetValue(debugExit),
                Audit = parsed.GetValue(audit),
                Patching = parsed.GetValue(mode) == DmpMode,
                DisabledTemplates = (parsed.GetValue(without) ?? []).ToHashSet(),
            },
            Mode = parsed.GetValue(mode) ?? DmpMode,
            Journal = parsed.GetValue(journal),
            Replay = !parsed.GetValue(noReplay),
            Until = parsed.GetValue(until),
            Timeout = parsed.GetValue(timeout),
            ReportPath = parsed.GetValue(report),
        }));
        return command;
    }

    private static async Task<int> RunAsync(HostEnvironment host, RunPlan plan)
    {
        using var sink = new StdoutSink(host.Output, host.Error);
        using RawTerminal? terminal = host.InputIsTerminal ? RawTerminal.Enter() : null;
        FinishedRun finished = await GuestRun.ExecuteAsync(host, plan, sink, run =>
        {
            InputForwarder.Start(host.Input, run);
            return Task.CompletedTask;
        }).ConfigureAwait(false);

        // Guest output first, then what we have to say about it, on a terminal that is itself again.
        sink.Complete();
        terminal?.Dispose();
        FailureText.Write(finished, host.Error);
        return ExitCodes.Of(finished.Result.Outcome);
    }

    private static string? Existing(string option, string? path) => path is null || File.Exists(path)
        ? path
        : throw new UnusableInputException($"{option} {path}: no such file; give the path of one that can be read");
}
