using Akka.Actor;
using static Dmp.Actors.Journal.JournalProtocol;

namespace Dmp.Actors.Journal;

/// <summary>Stands in for the journal where none is wanted: answers as it does, and keeps nothing beyond the run.</summary>
public sealed class VolatileJournal : ReceiveActor
{
    private JournalState state = JournalState.Empty;
    private bool closed;

    /// <summary>Creates the actor; use <see cref="Props"/>.</summary>
    public VolatileJournal()
    {
        Receive<Close>(close =>
        {
            closed = true;
            Sender.Tell(new Closed(close.RequestId));
        });
        Receive<IRequest>(_ => closed, request => Sender.Tell(new JournalFailed(request.RequestId, "the patch journal is closed")));
        Receive<Intend>(OnIntend);
        Receive<Complete>(OnComplete);
        Receive<Record>(record =>
        {
            foreach (JournalEvent.Fact fact in record.Facts)
            {
                state = state.Apply(fact);
            }

            Sender.Tell(new Recorded(record.RequestId));
        });
        Receive<GetState>(get => Sender.Tell(new State(get.RequestId, state)));
    }

    /// <summary>How to create it.</summary>
    public static Props Props() => Akka.Actor.Props.Create(() => new VolatileJournal()).WithDispatcher(ControlSettings.Dispatcher);

    /// <inheritdoc/>
    protected override void PreStart() => Context.Parent.Tell(new BecameAvailable(state));

    private void OnIntend(Intend intend)
    {
        if (state.Objection(intend.Patches) is { } objection)
        {
            Sender.Tell(new JournalFailed(intend.RequestId, objection));
            return;
        }

        long transaction = state.LastTransaction + 1;
        state = state.Apply(new JournalEvent.PatchIntended(transaction, intend.Patches) { KernelBase = intend.KernelBase });
        Sender.Tell(new Intended(intend.RequestId, transaction));
    }

    private void OnComplete(Complete complete)
    {
        state = state.Apply(new JournalEvent.PatchApplied(complete.Transaction, complete.Applied));
        foreach (AbortedPatch aborted in complete.Aborted)
        {
            state = state.Apply(new JournalEvent.PatchAborted(complete.Transaction, [aborted.Offset], aborted.Reason));
        }

        Sender.Tell(new Completed(complete.RequestId, complete.Transaction, state.Open(complete.Transaction)));
    }
}
