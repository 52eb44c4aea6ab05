using System.Collections.Immutable;
using Akka.Actor;
using Dmp.Actors.Quiesce;
using Dmp.Actors.Vcpus;
using Dmp.Actors.Writing;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Specs.Quiesce;

/// <summary>
/// The coordinator's state machine and those of its vCPUs with every message between them that is still under way. Whatever can happen
/// next is a step of its own; messages from one to another stay in order, and nothing else does.
/// </summary>
internal sealed record QuiesceWorld
{
    public static readonly IActorRef Coordinator = new NamedRef("quiesce");
    public static readonly IActorRef User = new NamedRef("machine");

    public required QuiesceState Quiesce { get; init; }

    public required ImmutableArray<Side> Sides { get; init; }

    public bool TimerRuns { get; init; }

    public bool WriterWrites { get; init; }

    /// <summary>Commits that are still to be asked for.</summary>
    public required int CommitsLeft { get; init; }

    public required int CrashesLeft { get; init; }

    /// <summary>What the user does yet: "pause" and then "resume", once.</summary>
    public string UserNext { get; init; } = "";

    public ImmutableList<object> Answers { get; init; } = [];

    /// <summary>What the states have in common that differ in the vCPUs' numbers only.</summary>
    public string Key => string.Join(
        '/',
        [
            $"{Quiesce.Phase}{TimerRuns}{WriterWrites}{CommitsLeft}{CrashesLeft}{UserNext}",
            string.Join(',', Quiesce.Waiting.Select(commit => commit.RequestId)) + $";{Quiesce.Current?.RequestId}",
            string.Join(',', Answers.Select(answer => answer.GetType().Name)),
            .. Sides.Select((side, vcpu) =>
                $"{Quiesce.Awaited.Contains(vcpu)}{Quiesce.Standing.Contains(vcpu)}{side.KeyOf(Quiesce.Epoch)}").Order(),
        ]);

    public static QuiesceWorld Running(int vcpus, int commits, int crashes, bool withUser) => new()
    {
        Quiesce = QuiesceState.Initial(Enumerable.Range(0, vcpus)),
        Sides =
        [
            .. Enumerable.Range(0, vcpus).Select(vcpu => new Side(VcpuState.Initial(vcpu) with { Phase = VcpuPhase.Running }, [], [])),
        ],
        CommitsLeft = commits,
        CrashesLeft = crashes,
        UserNext = withUser ? "pause" : "",
    };

    public IEnumerable<(string Name, QuiesceWorld After)> Steps()
    {
        if (CommitsLeft > 0)
        {
            yield return ("commit", (this with { CommitsLeft = CommitsLeft - 1 }).Happen(
                new QuiesceEvent.Asked(new QuiesceProtocol.Commit(CommitsLeft, CommitsLeft, [], []))));
        }

        if (TimerRuns)
        {
            yield return ("time up", (this with { TimerRuns = false }).Happen(new QuiesceEvent.TimedOut(Quiesce.Epoch)));
        }

        if (WriterWrites)
        {
            QuiesceWorld written = this with { WriterWrites = false };
            yield return ("written", written.Happen(
                new QuiesceEvent.Wrote(new WriterProtocol.Written(Quiesce.Epoch, [], [], []))));
            yield return ("writer fails", written.Happen(
                new QuiesceEvent.WriterFailed(new WriterProtocol.WriteFailed(Quiesce.Epoch, "disk", []))));
        }

        if (UserNext.Length > 0 && (UserNext == "pause" || Sides.All(side => side.UserHolds)))
        {
            VcpuProtocol.IRequest request = UserNext == "pause" ? new VcpuProtocol.Pause(-1) : new VcpuProtocol.Resume(-2);
            yield return ($"user's {UserNext}", this with
            {
                UserNext = UserNext == "pause" ? "resume" : "",
                Sides = [.. Sides.Select(side => side with { Inbox = side.Inbox.Add((request, User)) })],
            });
        }

        for (int vcpu = 0; vcpu < Sides.Length; vcpu++)
        {
            Side side = Sides[vcpu];
            if (!side.Inbox.IsEmpty)
            {
                (object message, IActorRef from) = side.Inbox[0];
                yield return ($"vCPU {vcpu} takes {message}", With(vcpu, (side with { Inbox = side.Inbox.RemoveAt(0) }).Take(message, from)));
            }

            if (side.State.Phase == VcpuPhase.Pausing)
            {
                yield return ($"vCPU {vcpu} stands", With(vcpu, side.Take(new VcpuProtocol.RunReturned(new VcpuStop.Paused()), User)));
            }

            if (CrashesLeft > 0 && side.State.Phase is VcpuPhase.Running or VcpuPhase.Pausing)
            {
                yield return ($"vCPU {vcpu} crashes", (this with { CrashesLeft = CrashesLeft - 1 })
                    .With(vcpu, side.Take(new VcpuProtocol.RunThrew(new InvalidOperationException("bug")), User)));
            }

            if (!side.Outbox.IsEmpty)
            {
                object message = side.Outbox[0];
                QuiesceWorld taken = With(vcpu, side with { Outbox = side.Outbox.RemoveAt(0) });
                yield return ($"coordinator takes {message}", message is VcpuProtocol.Paused paused
                    ? taken.Happen(new QuiesceEvent.Stood(paused.RequestId, vcpu))
                    : taken.Happen(new QuiesceEvent.Declined(((VcpuProtocol.Refused)message).RequestId, vcpu, "crashed")));
            }
        }
    }

    private QuiesceWorld With(int vcpu, Side side) => this with { Sides = Sides.SetItem(vcpu, side) };

    private QuiesceWorld Happen(QuiesceEvent happened)
    {
        QuiesceTransition transition = QuiesceStateMachine.Next(Quiesce, happened);
        QuiesceWorld world = this with { Quiesce = transition.State };
        foreach (QuiesceEffect effect in transition.Effects)
        {
            long epoch = transition.State.Epoch;
            world = effect switch
            {
                QuiesceEffect.Stop stop => world.Send(stop.Vcpu, new VcpuProtocol.Pause(epoch)),
                QuiesceEffect.Release release => world.Send(release.Vcpu, new VcpuProtocol.Resume(epoch)),
                QuiesceEffect.StartTimer => world with { TimerRuns = true },
                QuiesceEffect.CancelTimer => world with { TimerRuns = false },
                QuiesceEffect.Begin begin when begin.Write.Epoch == epoch => world with { WriterWrites = true },
                QuiesceEffect.Answer answer => world with { Answers = world.Answers.Add(answer.Message) },
                _ => throw new InvalidOperationException($"unexpected {effect}"),
            };
        }

        return world;
    }

    private QuiesceWorld Send(int vcpu, VcpuProtocol.IRequest request) =>
        With(vcpu, Sides[vcpu] with { Inbox = Sides[vcpu].Inbox.Add((request, Coordinator)) });

    /// <summary>A vCPU, what it has yet to read, and what the coordinator has yet to read from it.</summary>
    internal sealed record Side(VcpuState State, ImmutableList<(object Message, IActorRef From)> Inbox, ImmutableList<object> Outbox)
    {
        public bool UserHolds => State.Phase == VcpuPhase.Crashed || (State.Phase == VcpuPhase.Paused && State.Holders.Contains(User));

        public Side Take(object message, IActorRef from)
        {
            VcpuTransition transition = VcpuStateMachine.Next(State, message, from);
            return this with
            {
                State = transition.State,
                Outbox = Outbox.AddRange(transition.Effects.OfType<VcpuEffect.Reply>()
                    .Where(reply => reply.To.Equals(Coordinator) && reply.Answer is not VcpuProtocol.Resumed)
                    .Select(reply => reply.Answer)),
            };
        }

        // Epochs only matter by how old they are.
        public string KeyOf(long epoch)
        {
            return string.Join(
                '|',
                State.Phase,
                string.Join(',', State.Pauses.Select(request => Age(request.RequestId))),
                string.Join(',', State.Holders.Select(holder => holder.Path.Name).Order()),
                string.Join(',', Inbox.Select(entry => $"{entry.Message.GetType().Name}{Age(((VcpuProtocol.IRequest)entry.Message).RequestId)}")),
                string.Join(',', Outbox.Select(message => message is VcpuProtocol.Paused paused
                    ? $"P{Age(paused.RequestId)}"
                    : $"R{Age(((VcpuProtocol.Refused)message).RequestId)}")));

            string Age(long requestId) => requestId < 0 ? "user" : $"{epoch - requestId}";
        }
    }
}
