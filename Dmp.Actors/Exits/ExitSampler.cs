using System.Collections.Immutable;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Exits;

/// <summary>
/// Reads the exit tables of all vCPUs from the outside. No message is sent per exit; the vCPU threads do not notice. Any thread.
/// </summary>
/// <param name="vcpus">The vCPUs.</param>
/// <param name="clock">Wall clock.</param>
public sealed class ExitSampler(IReadOnlyList<IVcpu> vcpus, TimeProvider clock)
{
    private long started = clock.GetTimestamp();

    /// <summary>Makes this moment the zero of <see cref="ExitSample.At"/>.</summary>
    public void Start() => Volatile.Write(ref started, clock.GetTimestamp());

    /// <summary>Time since <see cref="Start"/>.</summary>
    public TimeSpan Now => clock.GetElapsedTime(Volatile.Read(ref started));

    /// <summary>Samples the totals.</summary>
    public ExitSample Sample()
    {
        long[] byKind = new long[ExitTable.KindCount];
        long outside = 0;
        long inside = 0;
        foreach (IVcpu vcpu in vcpus)
        {
            ExitTable table = vcpu.Exits;
            for (int kind = 0; kind < byKind.Length; kind++)
            {
                byKind[kind] += table.Total((ExitKind)kind);
            }

            outside += table.NanosecondsOutsideGuest;
            inside += table.NanosecondsInsideGuest;
        }

        return new ExitSample(
            Now,
            ImmutableArray.Create(byKind),
            TimeSpan.FromTicks(outside / TimeSpan.NanosecondsPerTick),
            TimeSpan.FromTicks(inside / TimeSpan.NanosecondsPerTick));
    }

    /// <summary>The figures of each vCPU.</summary>
    public ImmutableArray<VcpuCost> PerVcpu() =>
        [.. vcpus.Select(vcpu => new VcpuCost(vcpu.Index, vcpu.Exits.Total(), vcpu.WakeClock is { } clock ? IdleCost.Of(clock) : null))];

    /// <summary>The sites of all vCPUs, for one who looks often.</summary>
    internal SiteSums Sites() => new(vcpus);

    /// <summary>The hottest sites over all vCPUs, hottest first.</summary>
    /// <param name="count">How many at most.</param>
    public ImmutableArray<SiteCount> TopSites(int count)
    {
        var sum = new Dictionary<(ulong Rip, ExitKind Kind), long>();
        var snapshot = new List<SiteCount>();
        foreach (IVcpu vcpu in vcpus)
        {
            vcpu.Exits.SnapshotSites(snapshot);
            foreach (SiteCount site in snapshot)
            {
                sum[(site.Rip, site.Kind)] = sum.GetValueOrDefault((site.Rip, site.Kind)) + site.Exits;
            }
        }

        return
        [
            .. sum.Select(entry => new SiteCount(entry.Key.Rip, entry.Key.Kind, entry.Value))
                .OrderByDescending(site => site.Exits)
                .ThenBy(site => site.Rip)
                .Take(count),
        ];
    }
}
