using System.Collections.Immutable;
using Akka.Actor;
using Akka.Persistence;
using static Dmp.Actors.Journal.JournalProtocol;

namespace Dmp.Actors.Journal;

/// <summary>
/// The journal of one kernel's patches: a persistent actor whose stream is the kernel's own. It answers when an event is durable,
/// and ends at the first failure of the database; <see cref="JournalGuardian"/> decides what happens then.
/// </summary>
public sealed class PatchJournal : UntypedPersistentActor
{
    /// <summary>Why an intent that nobody completed was given up.</summary>
    internal const string EndedBefore = "the VMM ended before it was applied";

    private const string Prefix = "patches-";

    private readonly IActorRef owner;
    private readonly long session;
    private readonly IReadOnlySet<long> stillOpen;
    private readonly int snapshotEvery;
    private JournalState state = JournalState.Empty;
    private long snapshotAt;

    private PatchJournal(string kernelId, IActorRef owner, long session, IReadOnlySet<long> stillOpen, int snapshotEvery)
    {
        PersistenceId = PersistenceIdOf(kernelId);
        this.owner = owner;
        this.session = session;
        this.stillOpen = stillOpen;
        this.snapshotEvery = snapshotEvery;
    }

    /// <inheritdoc/>
    public override string PersistenceId { get; }

    /// <summary>Name of a kernel's stream.</summary>
    /// <param name="kernelId">The kernel's build id or hash.</param>
    public static string PersistenceIdOf(string kernelId) => Prefix + kernelId;

    /// <summary>The kernel whose stream has a name; null when it is no stream of patches.</summary>
    /// <param name="persistenceId">Name of the stream.</param>
    public static string? KernelIdOf(string persistenceId)
    {
        ArgumentNullException.ThrowIfNull(persistenceId);
        return persistenceId.StartsWith(Prefix, StringComparison.Ordinal) ? persistenceId[Prefix.Length..] : null;
    }

    /// <summary>How to create the journal of a kernel, in an actor system that <see cref="JournalConfiguration"/> has
    /// configured.</summary>
    /// <param name="kernelId">The kernel.</param>
    /// <param name="owner">Sends requests, and is told what becomes of the journal.</param>
    /// <param name="session">Number that the owner tells its journals apart by.</param>
    /// <param name="stillOpen">Transactions that the owner will yet complete; all others that are open are aborted on
    /// recovery.</param>
    /// <param name="snapshotEvery">Events between two snapshots; 0 for none.</param>
    internal static Props Props(
        string kernelId, IActorRef owner, long session, IReadOnlySet<long> stillOpen, int snapshotEvery) =>
        Akka.Actor.Props.CreateBy(new Producer(() => new PatchJournal(kernelId, owner, session, stillOpen, snapshotEvery)));

    /// <inheritdoc/>
    protected override void OnRecover(object message)
    {
        switch (message)
        {
            case JournalEvent happened:
                state = state.Apply(happened);
                break;
            case SnapshotOffer { Snapshot: JournalState snapshot } offer:
                state = snapshot;
                snapshotAt = offer.Metadata.SequenceNr;
                break;
            case RecoveryCompleted:
                Store(
                    state.Unresolved(EndedBefore, stillOpen).CastArray<JournalEvent>(),
                    () => owner.Tell(new Recovered(session, state)));
                break;
            case SnapshotOffer offer:
                throw new JournalFormatException($"its snapshot is a {offer.Snapshot?.GetType().Name}");
            default:
                throw new JournalFormatException($"it holds a {message.GetType().Name}");
        }
    }

    /// <inheritdoc/>
    protected override void OnCommand(object message)
    {
        switch (message)
        {
            case Asked asked:
                Answer(asked);
                break;
            case SaveSnapshotSuccess saved:
                // Only the last one is of use; that an older one stays behind would do no harm.
                DeleteSnapshots(new SnapshotSelectionCriteria(saved.Metadata.SequenceNr - 1));
                break;
            case SaveSnapshotFailure or DeleteSnapshotsSuccess or DeleteSnapshotsFailure:
                // All events are still there: without a snapshot the next recovery only takes longer.
                break;
            default:
                Unhandled(message);
                break;
        }
    }

    /// <inheritdoc/>
    protected override void OnRecoveryFailure(Exception reason, object? message = null) =>
        owner.Tell(new Broke(session, "read", reason));

    /// <inheritdoc/>
    protected override void OnPersistFailure(Exception cause, object @event, long sequenceNr) =>
        owner.Tell(new Broke(session, "write to", cause));

    /// <inheritdoc/>
    protected override void OnPersistRejected(Exception cause, object @event, long sequenceNr)
    {
        // The state in memory would still be right, but the request has no answer; a new session gives it one.
        owner.Tell(new Broke(session, "write to", cause));
        Context.Stop(Self);
    }

    /// <inheritdoc/>
    protected override void PostStop()
    {
        // Whatever it ended for, its owner must not wait. Comes too late to matter when the reason was told before.
        owner.Tell(new Broke(session, "keep", new InvalidOperationException("its actor has stopped")));
        base.PostStop();
    }

    private void Answer(Asked asked)
    {
        switch (asked.Request)
        {
            case Intend intend:
                OnIntend(asked.Number, intend);
                break;
            case Complete complete:
                OnComplete(asked.Number, complete);
                break;
            case Record record:
                OnRecord(asked.Number, record);
                break;
            case GetState get:
                Reply(asked.Number, new State(get.RequestId, state));
                break;
            default:
                Reply(asked.Number, new JournalFailed(
                    asked.Request.RequestId, $"the journal has no answer to {asked.Request.GetType().Name}"));
                break;
        }
    }

    private void OnIntend(long number, Intend intend)
    {
        if (state.Objection(intend.Patches) is { } objection)
        {
            Reply(number, new JournalFailed(intend.RequestId, objection));
            return;
        }

        long transaction = state.LastTransaction + 1;
        Store(
            [new JournalEvent.PatchIntended(transaction, intend.Patches) { KernelBase = intend.KernelBase }],
            () => Reply(number, new Intended(intend.RequestId, transaction)));
    }

    private void OnComplete(long number, Complete complete)
    {
        IEnumerable<long> offsets = complete.Applied.Concat(complete.Aborted.Select(aborted => aborted.Offset));
        if (state.Objection(complete.Transaction, offsets) is { } objection)
        {
            Reply(number, new JournalFailed(complete.RequestId, objection));
            return;
        }

        var events = ImmutableArray.CreateBuilder<JournalEvent>();
        if (!complete.Applied.IsEmpty)
        {
            events.Add(new JournalEvent.PatchApplied(complete.Transaction, complete.Applied));
        }

        events.AddRange(complete.Aborted.GroupBy(aborted => aborted.Reason).Select(group =>
            new JournalEvent.PatchAborted(complete.Transaction, [.. group.Select(aborted => aborted.Offset)], group.Key)));
        Store(
            events.ToImmutable(),
            () => Reply(number, new Completed(complete.RequestId, complete.Transaction, state.Open(complete.Transaction))));
    }

    private void OnRecord(long number, Record record)
    {
        // A site refused in every run must not make the journal longer with each.
        JournalState after = state;
        var news = ImmutableArray.CreateBuilder<JournalEvent>();
        foreach (JournalEvent.Fact fact in record.Facts)
        {
            JournalState next = after.Apply(fact);
            if (next != after)
            {
                news.Add(fact);
                after = next;
            }
        }

        Store(news.ToImmutable(), () => Reply(number, new Recorded(record.RequestId)));
    }

    /// <summary>Stores events in one transaction of the database, takes them in, and then goes on.</summary>
    private void Store(ImmutableArray<JournalEvent> events, Action stored)
    {
        if (events.IsEmpty)
        {
            stored();
            return;
        }

        int left = events.Length;
        PersistAll(events, happened =>
        {
            state = state.Apply(happened);
            if (--left == 0)
            {
                stored();
                SnapshotWhenDue();
            }
        });
    }

    private void SnapshotWhenDue()
    {
        if (snapshotEvery > 0 && LastSequenceNr - snapshotAt >= snapshotEvery)
        {
            snapshotAt = LastSequenceNr;
            SaveSnapshot(state);
        }
    }

    private void Reply(long number, object answer) => owner.Tell(new Answered(session, number, answer));

    /// <summary>From the owner: a request, under a number of the owner's.</summary>
    /// <param name="Number">The number.</param>
    /// <param name="Request">The request.</param>
    internal sealed record Asked(long Number, IRequest Request);

    /// <summary>To the owner: the answer to a request.</summary>
    /// <param name="Session">The owner's number of this journal.</param>
    /// <param name="Number">The owner's number of the request.</param>
    /// <param name="Answer">The answer.</param>
    internal sealed record Answered(long Session, long Number, object Answer);

    /// <summary>To the owner: the journal is recovered, and what nobody will complete is resolved.</summary>
    /// <param name="Session">The owner's number of this journal.</param>
    /// <param name="State">What it holds.</param>
    internal sealed record Recovered(long Session, JournalState State);

    /// <summary>To the owner: the journal has ended.</summary>
    /// <param name="Session">The owner's number of this journal.</param>
    /// <param name="Attempted">What failed: "read", "write to".</param>
    /// <param name="Cause">Why.</param>
    internal sealed record Broke(long Session, string Attempted, Exception Cause);

    private sealed class Producer(Func<PatchJournal> create) : IIndirectActorProducer
    {
        public Type ActorType => typeof(PatchJournal);

        public ActorBase Produce() => create();

        public void Release(ActorBase actor)
        {
        }
    }
}
