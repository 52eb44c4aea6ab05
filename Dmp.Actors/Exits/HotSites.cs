using System.Collections.Immutable;
using Dmp.Kvm.Cpu;

namespace Dmp.Actors.Exits;

/// <summary>
/// Finds the sites that exit often: counts that decay, and a threshold. A site is reported when its count passes the threshold, and again
/// only after it has counted that much anew: a report may have come to nothing. Pure but for what it remembers; one user at a time.
/// </summary>
/// <param name="threshold">Exits, decayed, that make a site hot.</param>
/// <param name="halfLife">Time in which a count halves.</param>
public sealed class HotSites(double threshold, TimeSpan halfLife)
{
    private readonly Dictionary<(ulong Rip, ExitKind Kind), Heat> heats = [];
    private readonly List<HotSite> hot = [];
    private TimeSpan last;

    /// <summary>Whether exits of a kind are at an instruction that might be patched.</summary>
    /// <param name="kind">The kind.</param>
    public static bool CanBePatched(ExitKind kind) => kind is ExitKind.Privileged or ExitKind.Silent or ExitKind.Io;

    /// <summary>Takes a sample in.</summary>
    /// <param name="at">Time of the sample; never earlier than the one before.</param>
    /// <param name="sites">Counts since the start.</param>
    /// <param name="limit">How many sites to report at most; the others are reported next time.</param>
    /// <returns>The sites that became hot, hottest first.</returns>
    public ImmutableArray<HotSite> Sample(TimeSpan at, IReadOnlyList<SiteCount> sites, int limit)
    {
        ArgumentNullException.ThrowIfNull(sites);
        double decay = Math.Pow(0.5, (at - last) / halfLife);
        last = at;
        hot.Clear();
        for (int index = 0; index < sites.Count; index++)
        {
            SiteCount site = sites[index];
            if (!CanBePatched(site.Kind))
            {
                continue;
            }

            Heat heat = heats.GetValueOrDefault((site.Rip, site.Kind));
            double decayed = (heat.Decayed * decay) + (site.Exits - heat.Counted);
            heats[(site.Rip, site.Kind)] = new Heat(site.Exits, decayed);
            if (decayed >= threshold)
            {
                hot.Add(new HotSite(site.Rip, site.Kind, site.Exits, decayed));
            }
        }

        hot.Sort((one, other) => other.Heat.CompareTo(one.Heat));
        ImmutableArray<HotSite> reported = [.. hot.Take(limit)];
        foreach (HotSite site in reported)
        {
            heats[(site.Rip, site.Kind)] = new Heat(site.Exits, 0);
        }

        return reported;
    }

    private readonly record struct Heat(long Counted, double Decayed);
}

/// <summary>A site that exits often.</summary>
/// <param name="Rip">Address of the instruction.</param>
/// <param name="Kind">What its exits are.</param>
/// <param name="Exits">Exits since the start.</param>
/// <param name="Heat">Exits lately: the decayed count.</param>
public sealed record HotSite(ulong Rip, ExitKind Kind, long Exits, double Heat);
