using System.Collections.Immutable;

namespace Dmp.Actors.Exits;

/// <summary>
/// Where the phases of a run begin. Belongs to the supervisor and is lent to the aggregator, so that a restarted aggregator goes
/// on where its predecessor failed; only ever touched by one of them at a time.
/// </summary>
public sealed class PhaseLedger
{
    /// <summary>Name of the phase that every run begins with.</summary>
    public const string FirstPhase = "boot";

    private ImmutableList<(string Name, ExitSample At)> cuts = [(FirstPhase, ExitSample.Zero)];

    /// <summary>The phase that began last.</summary>
    public string Current => cuts[^1].Name;

    /// <summary>Begins a phase. A cut that arrives late, after a restart, is put where its sample belongs.</summary>
    /// <param name="name">Name of the phase.</param>
    /// <param name="at">Counters when it began.</param>
    public void Cut(string name, ExitSample at)
    {
        ArgumentNullException.ThrowIfNull(at);
        int index = cuts.FindLastIndex(cut => cut.At.At <= at.At);
        cuts = cuts.Insert(index + 1, (name, at));
    }

    /// <summary>What each phase cost, if the last one ends here.</summary>
    /// <param name="end">Counters at the end.</param>
    public ImmutableArray<PhaseCost> Costs(ExitSample end) =>
    [
        .. cuts.Select((cut, index) =>
            new PhaseCost(cut.Name, (index + 1 < cuts.Count ? cuts[index + 1].At : end).Since(cut.At))),
    ];
}
