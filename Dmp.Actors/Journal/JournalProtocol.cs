using System.Collections.Immutable;

namespace Dmp.Actors.Journal;

/// <summary>
/// Messages of <see cref="JournalGuardian"/>, which stands for the patch journal whatever state that is in. Every request
/// carries an id and gets exactly one answer with the same id: the one named for it, or <see cref="JournalFailed"/>, within the
/// time that dmp.journal.answer-timeout sets (while the journal opens: dmp.journal.open-timeout). A positive answer to a
/// request that stores something means that it is durable.
/// </summary>
public static class JournalProtocol
{
    /// <summary>A request.</summary>
    public interface IRequest
    {
        /// <summary>Chosen by the sender, repeated in the answer.</summary>
        long RequestId { get; }
    }

    /// <summary>Store that patches are about to be applied, all in one transaction. Answered with <see cref="Intended"/>;
    /// without that answer none of them may be applied.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Patches">At least one; no two with the same offset.</param>
    public sealed record Intend(long RequestId, ImmutableArray<JournaledPatch> Patches) : IRequest
    {
        /// <summary>Where the kernel lies in this run, for people; 0 when not known.</summary>
        public ulong KernelBase { get; init; }
    }

    /// <summary>
    /// Store what became of a transaction, or of a part of it. Answered with <see cref="Completed"/>. After
    /// <see cref="JournalFailed"/>
    /// because the journal is not available, the journal stores it when it is available again, if that is in the same run.
    /// </summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Transaction">The transaction.</param>
    /// <param name="Applied">Offsets of the patches that are in the guest's code.</param>
    /// <param name="Aborted">The patches that are not.</param>
    public sealed record Complete(
        long RequestId, long Transaction, ImmutableArray<long> Applied, ImmutableArray<AbortedPatch> Aborted) : IRequest;

    /// <summary>A patch of a transaction that was not applied.</summary>
    /// <param name="Offset">Its offset.</param>
    /// <param name="Reason">Why not.</param>
    public sealed record AbortedPatch(long Offset, string Reason);

    /// <summary>
    /// Store facts, all or none. Answered with <see cref="Recorded"/>. What the journal knows already is not stored again;
    /// facts about patches that it never had are passed over. After <see cref="JournalFailed"/>: as with <see cref="Complete"/>.
    /// </summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Facts">Refusals, reverts, mismatches, retirements, observations.</param>
    public sealed record Record(long RequestId, ImmutableArray<JournalEvent.Fact> Facts) : IRequest;

    /// <summary>What the journal holds for this kernel. Answered with <see cref="State"/> as soon as it is recovered.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record GetState(long RequestId) : IRequest;

    /// <summary>Close the journal: everything that was acknowledged is stored anyway, this gives the database and its lock back.
    /// Answered with <see cref="Closed"/>, never with <see cref="JournalFailed"/>; every later request fails.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Close(long RequestId) : IRequest;

    /// <summary>The intent is durable.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Transaction">Number of the transaction.</param>
    public sealed record Intended(long RequestId, long Transaction);

    /// <summary>What became of the patches is durable.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Transaction">The transaction.</param>
    /// <param name="Open">Its patches of which nothing was said yet.</param>
    public sealed record Completed(long RequestId, long Transaction, ImmutableArray<long> Open);

    /// <summary>The facts are durable.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Recorded(long RequestId);

    /// <summary>What the journal holds.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Journal">All that is durable.</param>
    public sealed record State(long RequestId, JournalState Journal);

    /// <summary>The journal is closed.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Closed(long RequestId);

    /// <summary>Nothing was acknowledged: the journal is not available, or the request contradicts what it holds.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Reason">One line.</param>
    public sealed record JournalFailed(long RequestId, string Reason);

    /// <summary>To the parent, unasked: the journal can be used, for the first time or again.</summary>
    /// <param name="Journal">What it holds.</param>
    public sealed record BecameAvailable(JournalState Journal);

    /// <summary>To the parent, unasked: the journal cannot be used now, or still not and for another reason. The first reason
    /// of an outage has been logged.</summary>
    /// <param name="Reason">One line: what, why, what to do.</param>
    public sealed record BecameUnavailable(string Reason);
}
