using Dmp.Kvm.Cpu;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Cpu;

public class ExitTableSpecs
{
    private readonly ExitTable table = new();
    private readonly List<SiteCount> sites = [new(1, ExitKind.Io, 1)];

    [Theory(DisplayName = "Any address and kind comes back as it was counted")]
    [InlineData(0UL)]
    [InlineData(1UL)]
    [InlineData(0x0000_7FFF_FFFF_FFFFUL)]
    [InlineData(0xFFFF_FFFF_8100_0000UL)]
    [InlineData(0xFFFF_8000_0000_0000UL)]
    [InlineData(ulong.MaxValue)]
    public void Round_trip(ulong rip)
    {
        foreach (ExitKind kind in Enum.GetValues<ExitKind>())
        {
            table.Count(kind, rip);
            table.Count(kind, rip);
        }

        table.SnapshotSites(sites);
        Assert.Equal(
            Enum.GetValues<ExitKind>().Select(kind => new SiteCount(rip, kind, 2)),
            sites.OrderBy(site => site.Kind));
        Assert.Equal(2 * ExitTable.KindCount, table.Total());
        Assert.Equal(2, table.Total(ExitKind.Other));
    }

    [Property(DisplayName = "Sites and what did not fit add up to the total", MaxTest = 20)]
    public void Sums(int seed)
    {
        Random random = new(seed);
        ExitTable counted = new();
        int exits = random.Next(40_000);
        for (int exit = 0; exit < exits; exit++)
        {
            counted.Count((ExitKind)random.Next(ExitTable.KindCount), 0xFFFF_FFFF_8000_0000 + (ulong)random.Next(1 << 20));
        }

        counted.SnapshotSites(sites);
        Assert.Equal(exits, counted.Total());
        Assert.Equal(exits, sites.Sum(site => site.Exits) + counted.Unattributed);
    }

    [Fact(DisplayName = "Counting allocates nothing, also when the table is full")]
    public void Allocation()
    {
        table.Count(ExitKind.Io, 1);
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (ulong rip = 0; rip < 40_000; rip++)
        {
            table.Count(ExitKind.Io, rip);
        }

        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
        Assert.True(table.Unattributed > 0);
    }

    [Fact(DisplayName = "Time adds up, and a snapshot needs a list")]
    public void Time()
    {
        table.AddTime(1, 2);
        table.AddTime(3, 4);
        Assert.Equal((4, 6), (table.NanosecondsOutsideGuest, table.NanosecondsInsideGuest));
        Assert.Throws<ArgumentNullException>(() => table.SnapshotSites(null!));
    }
}
