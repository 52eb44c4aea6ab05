using System.Collections.Immutable;
using Dmp.Kvm.Cpu;

namespace Dmp.Actors.Exits;

/// <summary>The exit counters of all vCPUs together, at one moment.</summary>
/// <param name="At">Time since the guest's first instruction.</param>
/// <param name="ByKind">Exits, indexed by <see cref="ExitKind"/>.</param>
/// <param name="OutsideGuest">Time the vCPU threads spent between two KVM_RUN calls.</param>
/// <param name="InsideGuest">Time the vCPU threads spent inside KVM_RUN.</param>
public sealed record ExitSample(TimeSpan At, ImmutableArray<long> ByKind, TimeSpan OutsideGuest, TimeSpan InsideGuest)
{
    /// <summary>Nothing counted yet.</summary>
    public static ExitSample Zero { get; } =
        new(TimeSpan.Zero, [.. new long[ExitTable.KindCount]], TimeSpan.Zero, TimeSpan.Zero);

    /// <summary>Exits of all kinds.</summary>
    public long Total => ByKind.Sum();

    /// <summary>What was added since an earlier sample.</summary>
    /// <param name="earlier">The earlier sample.</param>
    public ExitSample Since(ExitSample earlier)
    {
        ArgumentNullException.ThrowIfNull(earlier);
        return new ExitSample(
            At - earlier.At,
            [.. ByKind.Zip(earlier.ByKind, (now, before) => now - before)],
            OutsideGuest - earlier.OutsideGuest,
            InsideGuest - earlier.InsideGuest);
    }
}

/// <summary>What one phase of the guest's work cost.</summary>
/// <param name="Name">Name the guest gave it; the first is "boot".</param>
/// <param name="Cost">Counters and wall time of this phase alone.</param>
public sealed record PhaseCost(string Name, ExitSample Cost);

/// <summary>What one vCPU cost.</summary>
/// <param name="Index">Index of the vCPU.</param>
/// <param name="Exits">Exits of all kinds.</param>
/// <param name="Idle">Its halts; null when they are not measured.</param>
public sealed record VcpuCost(int Index, long Exits, IdleCost? Idle);

/// <summary>A vCPU's halts.</summary>
/// <param name="Halted">How long they lasted together.</param>
/// <param name="Wakes">How many were measured to their end: from what ended them to guest code.</param>
/// <param name="Median">Half of them took no longer.</param>
/// <param name="Tail">99 of 100 took no longer.</param>
/// <param name="Longest">The longest.</param>
public sealed record IdleCost(TimeSpan Halted, long Wakes, TimeSpan Median, TimeSpan Tail, TimeSpan Longest)
{
    /// <summary>Reads a vCPU's clock.</summary>
    /// <param name="clock">The clock.</param>
    public static IdleCost Of(WakeClock clock)
    {
        const double Half = 0.5;
        const double Most = 0.99;
        ArgumentNullException.ThrowIfNull(clock);
        return new IdleCost(
            Time(clock.HaltedNanoseconds),
            clock.Wakes.Count,
            Time(clock.Wakes.Percentile(Half)),
            Time(clock.Wakes.Percentile(Most)),
            Time(clock.Wakes.Max));
    }

    private static TimeSpan Time(long nanoseconds) => TimeSpan.FromTicks(nanoseconds / TimeSpan.NanosecondsPerTick);
}

/// <summary>What a run cost.</summary>
/// <param name="Total">Counters and wall time of the whole run.</param>
/// <param name="Phases">The phases, in order.</param>
/// <param name="Sites">The hottest sites, hottest first.</param>
/// <param name="PerVcpu">What each vCPU cost.</param>
public sealed record ExitSummary(
    ExitSample Total, ImmutableArray<PhaseCost> Phases, ImmutableArray<SiteCount> Sites, ImmutableArray<VcpuCost> PerVcpu);
