using System.Collections.Immutable;
using static Dmp.Actors.Quiesce.QuiesceProtocol;
using static Dmp.Actors.Writing.WriterProtocol;

namespace Dmp.Actors.Quiesce;

/// <summary>Phases of an epoch.</summary>
public enum QuiescePhase
{
    /// <summary>No epoch: the world runs.</summary>
    Idle,

    /// <summary>The vCPUs are being stopped.</summary>
    Stopping,

    /// <summary>All vCPUs stand; the writer writes.</summary>
    Writing,
}

/// <summary>What the coordinator knows.</summary>
/// <param name="Vcpus">All vCPUs.</param>
/// <param name="Phase">Phase of the epoch.</param>
/// <param name="Epoch">Number of the epoch; counts up.</param>
/// <param name="Awaited">vCPUs that have not said yet that they stand.</param>
/// <param name="Standing">vCPUs that stand in this epoch.</param>
/// <param name="Current">What the epoch is for.</param>
/// <param name="Waiting">What the next epochs are for.</param>
/// <param name="Over">Whether a vCPU was found that cannot run any more: the machine comes to its end.</param>
public sealed record QuiesceState(
    ImmutableSortedSet<int> Vcpus,
    QuiescePhase Phase,
    long Epoch,
    ImmutableSortedSet<int> Awaited,
    ImmutableSortedSet<int> Standing,
    Commit? Current,
    ImmutableQueue<Commit> Waiting,
    bool Over = false)
{
    /// <summary>The state the coordinator begins in.</summary>
    /// <param name="vcpus">All vCPUs.</param>
    public static QuiesceState Initial(IEnumerable<int> vcpus) =>
        new([.. vcpus], QuiescePhase.Idle, 0, [], [], null, ImmutableQueue<Commit>.Empty);
}

/// <summary>What happens to an epoch.</summary>
public abstract record QuiesceEvent
{
    private QuiesceEvent()
    {
    }

    /// <summary>Somebody wants guest code changed.</summary>
    /// <param name="Commit">What.</param>
    public sealed record Asked(Commit Commit) : QuiesceEvent;

    /// <summary>A vCPU stands.</summary>
    /// <param name="Epoch">The epoch it was asked in.</param>
    /// <param name="Vcpu">The vCPU.</param>
    public sealed record Stood(long Epoch, int Vcpu) : QuiesceEvent;

    /// <summary>A vCPU cannot be stopped: it crashed, or has ended.</summary>
    /// <param name="Epoch">The epoch it was asked in.</param>
    /// <param name="Vcpu">The vCPU.</param>
    /// <param name="Reason">Why.</param>
    public sealed record Declined(long Epoch, int Vcpu, string Reason) : QuiesceEvent;

    /// <summary>The time for stopping is up.</summary>
    /// <param name="Epoch">The epoch.</param>
    public sealed record TimedOut(long Epoch) : QuiesceEvent;

    /// <summary>The writer is done.</summary>
    /// <param name="Result">What it did.</param>
    public sealed record Wrote(Written Result) : QuiesceEvent;

    /// <summary>The writer failed, and has taken back what it had applied.</summary>
    /// <param name="Failure">Why.</param>
    public sealed record WriterFailed(WriteFailed Failure) : QuiesceEvent;
}

/// <summary>What is to be done on a transition.</summary>
public abstract record QuiesceEffect
{
    private QuiesceEffect()
    {
    }

    /// <summary>Ask a vCPU to stand.</summary>
    /// <param name="Epoch">The epoch it is to stand for.</param>
    /// <param name="Vcpu">The vCPU.</param>
    public sealed record Stop(long Epoch, int Vcpu) : QuiesceEffect;

    /// <summary>Let a vCPU go.</summary>
    /// <param name="Epoch">The epoch it stood for.</param>
    /// <param name="Vcpu">The vCPU.</param>
    public sealed record Release(long Epoch, int Vcpu) : QuiesceEffect;

    /// <summary>Begin to keep the time of an epoch.</summary>
    /// <param name="Epoch">The epoch.</param>
    public sealed record StartTimer(long Epoch) : QuiesceEffect;

    /// <summary>Nothing needs to be timed any more.</summary>
    public sealed record CancelTimer : QuiesceEffect;

    /// <summary>Have the writer write.</summary>
    /// <param name="Write">What.</param>
    public sealed record Begin(Write Write) : QuiesceEffect;

    /// <summary>Answer a request.</summary>
    /// <param name="Message">The answer.</param>
    public sealed record Answer(object Message) : QuiesceEffect;
}

/// <summary>A new state and what to do on the way to it, in order.</summary>
/// <param name="State">The new state.</param>
/// <param name="Effects">What to do.</param>
public sealed record QuiesceTransition(QuiesceState State, ImmutableList<QuiesceEffect> Effects);

/// <summary>
/// The quiesce protocol as a pure function. Guest code is written only while every vCPU stands in this very epoch; when an epoch ends,
/// whatever ends it, every vCPU that stood for it is let go, also one that stands only afterwards. Only where a vCPU cannot run any more the
/// others stay as they are: the supervisor, who ends the machine then, may hear of it later than the coordinator.
/// </summary>
public static class QuiesceStateMachine
{
    /// <summary>Takes one step.</summary>
    /// <param name="state">State now.</param>
    /// <param name="happened">What happened.</param>
    public static QuiesceTransition Next(QuiesceState state, QuiesceEvent happened)
    {
        ArgumentNullException.ThrowIfNull(state);
        return happened switch
        {
            QuiesceEvent.Asked asked => OnAsked(state, asked.Commit),
            QuiesceEvent.Stood stood => OnStood(state, stood.Epoch, stood.Vcpu),
            QuiesceEvent.Declined declined when IsStopping(state, declined.Epoch) && state.Awaited.Contains(declined.Vcpu) =>
                GiveUp(state, $"vCPU {declined.Vcpu} cannot be stopped: {declined.Reason}"),
            QuiesceEvent.TimedOut timedOut when IsStopping(state, timedOut.Epoch) =>
                End(state, Aborted(state.Current!, $"vCPU {string.Join(", ", state.Awaited)} did not stop in time")),
            QuiesceEvent.Wrote wrote when IsWriting(state, wrote.Result.Epoch) => End(
                state,
                new Committed(
                    state.Current!.RequestId, state.Current.Transaction, wrote.Result.Applied, wrote.Result.Failed, wrote.Result.Reverted)),
            QuiesceEvent.WriterFailed failed when IsWriting(state, failed.Failure.Epoch) =>
                End(state, Aborted(state.Current!, $"the writer failed: {failed.Failure.Reason}") with { Reverted = failed.Failure.Reverted }),

            // Of an epoch that is over.
            _ => new QuiesceTransition(state, []),
        };
    }

    private static QuiesceTransition OnAsked(QuiesceState state, Commit commit) => state switch
    {
        { Over: true } => new QuiesceTransition(state, [new QuiesceEffect.Answer(Aborted(commit, "a vCPU does not run any more"))]),
        { Phase: QuiescePhase.Idle } => Begin(state, commit),
        _ => new QuiesceTransition(state with { Waiting = state.Waiting.Enqueue(commit) }, []),
    };

    private static QuiesceTransition Begin(QuiesceState state, Commit commit)
    {
        long epoch = state.Epoch + 1;
        return new QuiesceTransition(
            state with
            {
                Phase = QuiescePhase.Stopping,
                Epoch = epoch,
                Awaited = state.Vcpus,
                Standing = [],
                Current = commit,
            },
            [new QuiesceEffect.StartTimer(epoch), .. state.Vcpus.Select(vcpu => new QuiesceEffect.Stop(epoch, vcpu))]);
    }

    private static QuiesceTransition OnStood(QuiesceState state, long epoch, int vcpu)
    {
        if (!IsStopping(state, epoch) || !state.Awaited.Contains(vcpu))
        {
            // Too late. While a later epoch is under way, the same vCPU was asked again, and is let go when that ends.
            return new QuiesceTransition(state, state is { Phase: QuiescePhase.Idle, Over: false } ? [new QuiesceEffect.Release(epoch, vcpu)] : []);
        }

        QuiesceState stood = state with { Awaited = state.Awaited.Remove(vcpu), Standing = state.Standing.Add(vcpu) };
        if (!stood.Awaited.IsEmpty)
        {
            return new QuiesceTransition(stood, []);
        }

        return new QuiesceTransition(
            stood with { Phase = QuiescePhase.Writing },
            [
                new QuiesceEffect.CancelTimer(),
                new QuiesceEffect.Begin(new Write(state.Epoch, state.Current!.Patches, state.Current.Reverts)),
            ]);
    }

    private static Aborted Aborted(Commit commit, string reason) => new(commit.RequestId, commit, reason);

    /// <summary>The last epoch: a vCPU cannot run any more.</summary>
    private static QuiesceTransition GiveUp(QuiesceState state, string reason) => new(
        state with
        {
            Phase = QuiescePhase.Idle, Awaited = [], Standing = [], Current = null, Waiting = ImmutableQueue<Commit>.Empty, Over = true,
        },
        [
            new QuiesceEffect.CancelTimer(),
            new QuiesceEffect.Answer(Aborted(state.Current!, reason)),
            .. state.Waiting.Select(commit => new QuiesceEffect.Answer(Aborted(commit, reason))),
        ]);

    private static QuiesceTransition End(QuiesceState state, object answer)
    {
        ImmutableList<QuiesceEffect> effects =
        [
            .. state.Standing.Select(vcpu => new QuiesceEffect.Release(state.Epoch, vcpu)),
            new QuiesceEffect.CancelTimer(),
            new QuiesceEffect.Answer(answer),
        ];
        QuiesceState idle = state with { Phase = QuiescePhase.Idle, Awaited = [], Standing = [], Current = null };
        if (state.Waiting.IsEmpty)
        {
            return new QuiesceTransition(idle, effects);
        }

        QuiesceTransition next = Begin(idle with { Waiting = state.Waiting.Dequeue(out Commit commit) }, commit);
        return next with { Effects = effects.AddRange(next.Effects) };
    }

    private static bool IsStopping(QuiesceState state, long epoch) => state.Phase == QuiescePhase.Stopping && state.Epoch == epoch;

    private static bool IsWriting(QuiesceState state, long epoch) => state.Phase == QuiescePhase.Writing && state.Epoch == epoch;
}
