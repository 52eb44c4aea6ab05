using System.Collections.Immutable;
using System.Globalization;
using System.Text.Json;
using Dmp.Actors.Exits;
using Dmp.Actors.Machine;
using Dmp.Actors.Planning;
using Dmp.Host.Running;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;

namespace Dmp.Host.Reporting;

/// <summary>Turns what is known about a run into its report. Pure but for the questions it asks the machine.</summary>
internal static class ReportBuilder
{
    /// <summary>Names of the exit kinds, as the report spells them.</summary>
    public static string Name(ExitKind kind) => JsonNamingPolicy.SnakeCaseLower.ConvertName(kind.ToString());

    /// <summary>The report of a run.</summary>
    /// <param name="plan">What was to be run.</param>
    /// <param name="result">What came of it.</param>
    /// <param name="facts">What the machine knows about itself, or null.</param>
    public static ReportDocument Build(RunPlan plan, MachineResult result, IMachineFacts? facts)
    {
        ExitSummary summary = result.Summary;
        return new ReportDocument
        {
            Outcome = Name(result.Outcome),
            Detail = result.Outcome.Detail,
            Host = Host(facts?.Host),
            Guest = Guest(plan, facts?.KernelId),
            WallMs = Milliseconds(summary.Total.At),
            UntilMs = result.UntilAt is { } until ? Milliseconds(until) : null,
            Exits = Exits(summary.Total),
            Time = Time(summary.Total),
            Phases =
            [
                .. summary.Phases.Select(phase => new PhaseSection
                {
                    Name = phase.Name,
                    WallMs = Milliseconds(phase.Cost.At),
                    Exits = Exits(phase.Cost),
                    Time = Time(phase.Cost),
                }),
            ],
            Sites = [.. summary.Sites.Select(site => Site(site, result.Patches?.Find(site.Rip), facts))],
            Patches = Patches(result.Patches ?? PatchSummary.Empty),
            QuiesceUs = Quiesce(result.StopMicroseconds),
            Vcpus = summary.PerVcpu.IsEmpty ? null : [.. summary.PerVcpu.Select(Vcpu)],
            UnownedPorts = facts?.UnownedPorts?.ToDictionary(port => Hexadecimal(port.Key), port => port.Value),
            VcpuStates = result.Vcpus.IsEmpty
                ? null
                : [.. result.Vcpus.Select(vcpu => new VcpuStateSection(vcpu.Vcpu, vcpu.State))],
            Unfinished = result.Unfinished.IsEmpty ? null : result.Unfinished,
        };
    }

    /// <summary>The report of a run that never began: nothing was measured.</summary>
    public static ReportDocument BuildWithoutRun(RunPlan plan, string detail) => new()
    {
        Outcome = Name(new RunOutcome.VmmFailed(detail, Failure: null)),
        Detail = detail,
        Guest = Guest(plan, kernelId: null),
    };

    /// <summary>
    /// Name of an outcome. The contract has five: a guest that writes to its debug-exit port has switched itself off, a user who
    /// ends a run has pulled the plug; detail and exit code tell them apart.
    /// </summary>
    private static string Name(RunOutcome outcome) => outcome switch
    {
        RunOutcome.PoweredOff or RunOutcome.DebugExit or RunOutcome.EndedByUser => "powered_off",
        RunOutcome.UntilSeen => "until",
        RunOutcome.GuestFailed => "guest_failed",
        RunOutcome.TimedOut => "timeout",
        _ => "vmm_failed",
    };

    private static SiteSection Site(SiteCount site, PatchedSite? patched, IMachineFacts? facts) => new()
    {
        Rip = Hexadecimal(site.Rip),
        Symbol = facts?.Symbol(site.Rip),
        Instruction = facts?.Instruction(site.Rip),
        Kind = Name(site.Kind),
        Exits = site.Exits,
        State = patched is null ? null : JsonNamingPolicy.SnakeCaseLower.ConvertName(patched.State.ToString()),
        Template = string.IsNullOrEmpty(patched?.Template) ? null : patched.Template,
        Reason = string.IsNullOrEmpty(patched?.Reason) ? null : patched.Reason,
    };

    private static PatchSection Patches(PatchSummary patches) =>
        new(patches.Applied, patches.Replayed, patches.Refused, patches.Reverted, patches.Aborted, patches.InForce)
        {
            Verified = patches.Verified,
            Mismatched = patches.Mismatched,
        };

    private static QuiesceSection Quiesce(ImmutableArray<double> sorted)
    {
        const double Median = 0.5;
        const double Tail = 0.99;
        return sorted.IsEmpty
            ? new QuiesceSection { Count = 0 }
            : new QuiesceSection { Count = sorted.Length, P50 = At(Median), P99 = At(Tail), Max = Math.Round(sorted[^1], 1) };

        double At(double share) => Math.Round(sorted[(int)Math.Ceiling((sorted.Length * share) - 1)], 1);
    }

    private static VcpuSection Vcpu(VcpuCost vcpu) => new()
    {
        Index = vcpu.Index,
        Exits = vcpu.Exits,
        HaltedMs = vcpu.Idle is { } idle ? Milliseconds(idle.Halted) : null,
        WakeUs = vcpu.Idle is { Wakes: > 0 } wakes
            ? new WakeSection(
                wakes.Wakes, Microseconds(wakes.Median), Microseconds(wakes.Tail), Microseconds(wakes.Longest))
            : null,
    };

    private static HostSection? Host(HostFacts? host) => host is null ? null : new HostSection
    {
        Cpl0 = host.Cpl0,
        HostPageTableWrites = host.HostPageTableWrites,
        ExitUs = host.ExitMicroseconds,
        Strategies = host.Strategies,
    };

    private static GuestSection Guest(RunPlan plan, string? kernelId) => new()
    {
        Kernel = plan.Machine.KernelPath,
        KernelId = kernelId,
        Cpus = plan.Machine.Cpus,
        MemoryBytes = plan.Machine.MemoryBytes,
        Mode = plan.Mode,
    };

    private static ExitSection Exits(ExitSample sample) => new(
        sample.Total,
        Enum.GetValues<ExitKind>().ToDictionary(Name, kind => sample.ByKind[(int)kind]));

    // A vCPU that keeps no time accounts leaves both at zero; no real run does.
    private static TimeSection? Time(ExitSample sample) => sample.InsideGuest + sample.OutsideGuest == TimeSpan.Zero
        ? null
        : new TimeSection(Milliseconds(sample.InsideGuest), Milliseconds(sample.OutsideGuest));

    private static double Milliseconds(TimeSpan time) => Math.Round(time.TotalMilliseconds, 1);

    private static double Microseconds(TimeSpan time) => Math.Round(time.TotalMicroseconds, 1);

    private static string Hexadecimal(ulong value) => string.Create(CultureInfo.InvariantCulture, $"0x{value:x}");
}
