using System.Collections.Immutable;
using Dmp.Actors.Exits;
using Dmp.Kvm.Cpu;
using FsCheck;
using FsCheck.Fluent;
using FsCheck.Xunit;

namespace Dmp.Actors.Specs.Exits;

public class HotSitesSpecs
{
    private static readonly TimeSpan HalfLife = TimeSpan.FromSeconds(1);

    [Property(DisplayName = "A count halves in every half-life: what is left of it, and as much again as is missing, make the site hot")]
    public void Halves(PositiveInt half, byte lives)
    {
        int elapsed = lives % 8;
        double threshold = half.Get * 2.0;
        double left = (threshold - 1) / Math.Pow(2, elapsed);
        int missing = (int)Math.Ceiling(threshold - left);

        HotSites sites = Warm(threshold, (int)threshold - 1);
        Assert.Empty(sites.Sample(elapsed * HalfLife, [Site(1, (int)threshold - 1 + missing - 1)], 10));
        sites = Warm(threshold, (int)threshold - 1);
        Assert.Single(sites.Sample(elapsed * HalfLife, [Site(1, (int)threshold - 1 + missing)], 10));
    }

    [Property(DisplayName = "Heat is never negative and never more than was counted; the hottest come first, all pass the threshold")]
    public void Bounds(PositiveInt threshold, List<(byte Site, ushort Exits, ushort Milliseconds)> history, byte limit)
    {
        var sites = new HotSites(threshold.Get, HalfLife);
        var counts = new SortedDictionary<byte, long>();
        TimeSpan at = TimeSpan.Zero;
        foreach ((byte site, ushort exits, ushort milliseconds) in history)
        {
            counts[site] = counts.GetValueOrDefault(site) + exits;
            at += TimeSpan.FromMilliseconds(milliseconds);
            ImmutableArray<HotSite> hot = sites.Sample(at, [.. counts.Select(count => Site(count.Key, count.Value))], limit);
            Assert.InRange(hot.Length, 0, limit);
            Assert.All(hot, found => Assert.InRange(found.Heat, threshold.Get, counts[(byte)found.Rip]));
            Assert.Equal(hot.OrderByDescending(found => found.Heat).Select(found => found.Heat), hot.Select(found => found.Heat));
        }
    }

    [Property(DisplayName = "A report costs a site its heat: it comes again only when it counted as much anew")]
    public void Again(PositiveInt threshold)
    {
        var sites = new HotSites(threshold.Get, HalfLife);
        Assert.Single(sites.Sample(TimeSpan.Zero, [Site(1, threshold.Get)], 10));
        Assert.Empty(sites.Sample(TimeSpan.Zero, [Site(1, (2L * threshold.Get) - 1)], 10));
        Assert.Single(sites.Sample(TimeSpan.Zero, [Site(1, 2L * threshold.Get)], 10));
    }

    [Fact(DisplayName = "A site that the limit leaves out keeps its heat and comes the next time")]
    public void Limit()
    {
        var sites = new HotSites(10, HalfLife);
        SiteCount[] counts = [Site(1, 10), Site(2, 30), Site(3, 20)];
        Assert.Equal([2UL, 3], sites.Sample(TimeSpan.Zero, counts, 2).Select(site => site.Rip));
        Assert.Equal([1UL], sites.Sample(TimeSpan.Zero, counts, 2).Select(site => site.Rip));
        Assert.Empty(sites.Sample(TimeSpan.Zero, counts, 2));
    }

    [Fact(DisplayName = "Only exits at an instruction that could be patched make a site hot, and each kind counts for itself")]
    public void Kinds()
    {
        var sites = new HotSites(10, HalfLife);
        SiteCount[] counts = [.. Enum.GetValues<ExitKind>().Select(kind => new SiteCount(1, kind, 10))];
        Assert.Equal(
            [ExitKind.Io, ExitKind.Privileged, ExitKind.Silent],
            sites.Sample(TimeSpan.Zero, counts, 100).Select(site => site.Kind).OrderBy(kind => kind.ToString(), StringComparer.Ordinal));
    }

    private static HotSites Warm(double threshold, long exits)
    {
        var sites = new HotSites(threshold, HalfLife);
        Assert.Empty(sites.Sample(TimeSpan.Zero, [Site(1, exits)], 10));
        return sites;
    }

    private static SiteCount Site(ulong rip, long exits) => new(rip, ExitKind.Privileged, exits);
}
