using Dmp.Actors.Exits;
using Dmp.Kvm.Cpu;

namespace Dmp.Actors.Specs.Exits;

public class PhaseLedgerSpecs
{
    [Fact(DisplayName = "The phases add up to the whole, also when a cut arrives late")]
    public void Phases_add_up()
    {
        var ledger = new PhaseLedger();
        ledger.Cut("second", At(20, 200));
        ledger.Cut("first", At(10, 50));
        var costs = ledger.Costs(At(30, 210));
        Assert.Equal(["boot", "first", "second"], costs.Select(cost => cost.Name));
        Assert.Equal([50L, 150L, 10L], costs.Select(cost => cost.Cost.Total));
        Assert.All(costs, cost => Assert.Equal(TimeSpan.FromSeconds(10), cost.Cost.At));
    }

    private static ExitSample At(int seconds, long io)
    {
        long[] byKind = new long[ExitTable.KindCount];
        byKind[(int)ExitKind.Io] = io;
        return ExitSample.Zero with { At = TimeSpan.FromSeconds(seconds), ByKind = [.. byKind] };
    }
}
