using System.Collections.Immutable;
using Akka.Actor;
using Dmp.Actors.Journal;
using Dmp.Actors.Quiesce;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Planning;

/// <summary>A transaction under way.</summary>
/// <param name="Id">Id of the request that is to be answered.</param>
/// <param name="Patches">Patches still to be applied.</param>
/// <param name="Reverts">Patches still to be taken back.</param>
/// <param name="Observed">What the patched sites cost before.</param>
/// <param name="Answer">Who has asked for it; null when hot sites did.</param>
internal sealed record PlannerTransaction(
    long Id,
    ImmutableArray<PreparedPatch> Patches,
    ImmutableArray<PatchPlan> Reverts,
    ImmutableArray<JournalEvent.Fact> Observed,
    (PlanningProtocol.SetPatching Request, IActorRef From)? Answer)
{
    /// <summary>The journal's number of it; 0 for one that only takes back.</summary>
    public long Number { get; init; }

    /// <summary>Patches applied so far.</summary>
    public ImmutableArray<PatchPlan> Applied { get; init; } = [];

    /// <summary>Patches that could not be applied so far.</summary>
    public ImmutableArray<QuiesceProtocol.FailedPatch> Failed { get; init; } = [];

    /// <summary>Patches taken back so far.</summary>
    public int Reverted { get; init; }

    /// <summary>Whether a part is done and the next one is still to be asked for.</summary>
    public bool IsBetweenParts { get; init; }

    /// <summary>What is left when a part was committed.</summary>
    /// <param name="committed">What became of it.</param>
    /// <param name="part">Most patches in a part.</param>
    public PlannerTransaction After(QuiesceProtocol.Committed committed, int part)
    {
        ImmutableArray<PreparedPatch> patches = [.. Patches.Skip(part)];
        ImmutableArray<PatchPlan> reverts = [.. Reverts.Skip(part)];
        return this with
        {
            Patches = patches,
            Reverts = reverts,
            Applied = [.. Applied, .. committed.Applied],
            Failed = [.. Failed, .. committed.Failed],
            Reverted = Reverted + committed.Reverted.Length,
            IsBetweenParts = patches.Length + reverts.Length > 0,
        };
    }
}
