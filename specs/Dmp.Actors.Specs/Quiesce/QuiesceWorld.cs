using System.Collections.Immutable;
using System.Text;
using Akka.Actor;
using Dmp.Actors.Quiesce;
using Dmp.Actors.Vcpus;
using Dmp.Actors.Writing;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Specs.Quiesce;

/// <summary>What can happen next.</summary>
internal enum Happening
{
    Commit,
    TimeUp,
    Written,
    WriterFails,
    UserPauses,
    UserTimeUp,
    UserResumes,
    Shutdown,
    VcpuReady,
    VcpuTakes,
    VcpuStands,
    VcpuCrashes,
    VcpuEnds,
    CoordinatorTakes,
    UserTakes,
}

/// <summary>One thing that happens.</summary>
/// <param name="What">What.</param>
/// <param name="Vcpu">On, to or from which vCPU.</param>
internal readonly record struct WorldStep(Happening What, int Vcpu = -1);

/// <summary>How much happens in a world.</summary>
internal sealed record WorldLimits(int Vcpus)
{
    public int Commits { get; init; } = 1;

    /// <summary>vCPUs that crash, or on which the guest ends.</summary>
    public int Failures { get; init; }

    /// <summary>How often the user pauses the machine; he resumes it each time.</summary>
    public int Pauses { get; init; }

    /// <summary>Whether the machine is shut down at some time.</summary>
    public bool Shutdown { get; init; }

    /// <summary>Whether the world begins before the vCPUs' threads are there.</summary>
    public bool Starting { get; init; }
}

/// <summary>
/// The coordinator's state machine, those of its vCPUs, and a user who pauses, resumes and ends the machine as its supervisor does, with
/// every message between them that is still under way. Whatever can happen next is a step of its own; messages from one to another stay
/// in order, and nothing else does.
/// </summary>
internal sealed record QuiesceWorld
{
    public static readonly IActorRef Coordinator = new NamedRef("quiesce");
    public static readonly IActorRef User = new NamedRef("machine");

    public required QuiesceState Quiesce { get; init; }

    public required ImmutableArray<Side> Sides { get; init; }

    public required UserSide Pauser { get; init; }

    public bool TimerRuns { get; init; }

    public bool WriterWrites { get; init; }

    public required int CommitsLeft { get; init; }

    public required int FailuresLeft { get; init; }

    public required int PausesLeft { get; init; }

    public required bool ShutdownLeft { get; init; }

    public ImmutableList<object> Answers { get; init; } = [];

    /// <summary>What worlds have in common that differ in the vCPUs' numbers only.</summary>
    public string Key
    {
        get
        {
            var key = new StringBuilder();
            key.Append((int)Quiesce.Phase).Append(TimerRuns ? 't' : '-').Append(WriterWrites ? 'w' : '-')
                .Append(CommitsLeft).Append(FailuresLeft).Append(PausesLeft).Append(ShutdownLeft ? 's' : '-')
                .Append((int)Pauser.Phase).Append('c').Append(Quiesce.Current?.RequestId ?? 0).Append(Quiesce.Over ? 'o' : '-');
            foreach (QuiesceProtocol.Commit commit in Quiesce.Waiting)
            {
                key.Append(',').Append(commit.RequestId);
            }

            foreach (object answer in Answers)
            {
                key.Append(answer is QuiesceProtocol.Committed ? 'C' : 'A');
            }

            QuiesceWorld world = this;
            return key.AppendJoin(
                '/', Enumerable.Range(0, Sides.Length).Select(vcpu => world.KeyOf(vcpu)).Order(StringComparer.Ordinal)).ToString();
        }
    }

    public static QuiesceWorld Of(WorldLimits limits)
    {
        var world = new QuiesceWorld
        {
            Quiesce = QuiesceState.Initial(Enumerable.Range(0, limits.Vcpus)),
            Sides =
            [
                .. Enumerable.Range(0, limits.Vcpus).Select(vcpu => new Side(
                    VcpuState.Initial(vcpu) with { Phase = limits.Starting ? VcpuPhase.Starting : VcpuPhase.Running }, [], [], [])),
            ],
            Pauser = UserSide.Initial,
            CommitsLeft = limits.Commits,
            FailuresLeft = limits.Failures,
            PausesLeft = limits.Pauses + (limits.Starting ? 1 : 0),
            ShutdownLeft = limits.Shutdown,
        };

        // A machine begins with a pause: its guest starts when all vCPUs stand.
        return limits.Starting ? world.After(new WorldStep(Happening.UserPauses)) : world;
    }

    /// <summary>What can happen.</summary>
    public IEnumerable<WorldStep> Steps()
    {
        if (CommitsLeft > 0)
        {
            yield return new WorldStep(Happening.Commit);
        }

        if (TimerRuns)
        {
            yield return new WorldStep(Happening.TimeUp);
        }

        if (WriterWrites)
        {
            yield return new WorldStep(Happening.Written);
            yield return new WorldStep(Happening.WriterFails);
        }

        switch (Pauser.Phase)
        {
            case UserPhase.Running when PausesLeft > 0:
                yield return new WorldStep(Happening.UserPauses);
                break;
            case UserPhase.Pausing:
                yield return new WorldStep(Happening.UserTimeUp);
                break;
            case UserPhase.Paused:
                yield return new WorldStep(Happening.UserResumes);
                break;
        }

        if (ShutdownLeft)
        {
            yield return new WorldStep(Happening.Shutdown);
        }

        for (int vcpu = 0; vcpu < Sides.Length; vcpu++)
        {
            foreach (Happening happening in StepsOf(Sides[vcpu]))
            {
                yield return new WorldStep(happening, vcpu);
            }
        }
    }

    /// <summary>The world after something happened.</summary>
    public QuiesceWorld After(WorldStep step)
    {
        int vcpu = step.Vcpu;
        switch (step.What)
        {
            case Happening.Commit:
                return (this with { CommitsLeft = CommitsLeft - 1 }).Happen(
                    new QuiesceEvent.Asked(new QuiesceProtocol.Commit(CommitsLeft, CommitsLeft, [], [])));
            case Happening.TimeUp:
                return (this with { TimerRuns = false }).Happen(new QuiesceEvent.TimedOut(Quiesce.Epoch));
            case Happening.Written:
                return (this with { WriterWrites = false }).Happen(
                    new QuiesceEvent.Wrote(new WriterProtocol.Written(Quiesce.Epoch, [], [], [])));
            case Happening.WriterFails:
                return (this with { WriterWrites = false }).Happen(
                    new QuiesceEvent.WriterFailed(new WriterProtocol.WriteFailed(Quiesce.Epoch, "disk", [])));
            case Happening.UserPauses:
                return (this with { PausesLeft = PausesLeft - 1, Pauser = Pauser.Pause(Quiesce.Vcpus) })
                    .ToAll(Quiesce.Vcpus, id => new VcpuProtocol.Pause(id));
            case Happening.UserTimeUp:
                return LetGo(Pauser.Agreed);
            case Happening.UserResumes:
                return LetGo(Quiesce.Vcpus);
            case Happening.Shutdown:
                return (this with { ShutdownLeft = false, Pauser = Pauser with { Phase = UserPhase.Ending } })
                    .ToAll(Quiesce.Vcpus, id => new VcpuProtocol.Stop(id));
            case Happening.VcpuReady:
                return With(vcpu, Sides[vcpu].Take(new VcpuProtocol.ThreadReady(), User));
            case Happening.VcpuTakes:
                (VcpuProtocol.IRequest message, IActorRef from) = Sides[vcpu].Inbox[0];
                return With(vcpu, (Sides[vcpu] with { Inbox = Sides[vcpu].Inbox.RemoveAt(0) }).Take(message, from));
            case Happening.VcpuStands:
                return With(vcpu, Sides[vcpu].Take(new VcpuProtocol.RunReturned(new VcpuStop.Paused()), User));
            case Happening.VcpuCrashes:
                return Fail().With(vcpu, Sides[vcpu].Take(new VcpuProtocol.RunThrew(new InvalidOperationException("bug")), User));
            case Happening.VcpuEnds:
                return Fail().With(vcpu, Sides[vcpu].Take(new VcpuProtocol.RunReturned(new VcpuStop.PoweredOff()), User));
            case Happening.CoordinatorTakes:
                object word = Sides[vcpu].ToCoordinator[0];
                return With(vcpu, Sides[vcpu] with { ToCoordinator = Sides[vcpu].ToCoordinator.RemoveAt(0) }).Happen(
                    word is VcpuProtocol.Paused paused
                        ? new QuiesceEvent.Stood(paused.RequestId, vcpu)
                        : new QuiesceEvent.Declined(((VcpuProtocol.Refused)word).RequestId, vcpu, "it failed"));
            default:
                object answer = Sides[vcpu].ToUser[0];
                return With(vcpu, Sides[vcpu] with { ToUser = Sides[vcpu].ToUser.RemoveAt(0) }).UserTakes(vcpu, answer);
        }
    }

    /// <summary>The supervisor ends the machine when it hears of that, sooner or later.</summary>
    private QuiesceWorld Fail() =>
        this with { FailuresLeft = FailuresLeft - 1, ShutdownLeft = Pauser.Phase != UserPhase.Ending };

    private IEnumerable<Happening> StepsOf(Side side)
    {
        if (!side.Inbox.IsEmpty)
        {
            yield return Happening.VcpuTakes;
        }

        if (!side.ToCoordinator.IsEmpty)
        {
            yield return Happening.CoordinatorTakes;
        }

        if (!side.ToUser.IsEmpty)
        {
            yield return Happening.UserTakes;
        }

        switch (side.State.Phase)
        {
            case VcpuPhase.Starting:
                yield return Happening.VcpuReady;
                break;
            case VcpuPhase.Pausing:
                yield return Happening.VcpuStands;
                break;
        }

        if (FailuresLeft > 0 && side.State.Phase is VcpuPhase.Running or VcpuPhase.Pausing)
        {
            yield return Happening.VcpuCrashes;
            yield return Happening.VcpuEnds;
        }
    }

    private QuiesceWorld Happen(QuiesceEvent happened)
    {
        QuiesceTransition transition = QuiesceStateMachine.Next(Quiesce, happened);
        QuiesceWorld world = this with { Quiesce = transition.State };
        foreach (QuiesceEffect effect in transition.Effects)
        {
            long epoch = transition.State.Epoch;
            world = effect switch
            {
                QuiesceEffect.Stop stop when stop.Epoch == epoch =>
                    world.Send(stop.Vcpu, new VcpuProtocol.Pause(stop.Epoch), Coordinator),
                QuiesceEffect.Release release when !transition.State.Over => world.Send(release.Vcpu, new VcpuProtocol.Resume(release.Epoch), Coordinator),
                QuiesceEffect.StartTimer start when start.Epoch == epoch => world with { TimerRuns = true },
                QuiesceEffect.CancelTimer => world with { TimerRuns = false },
                QuiesceEffect.Begin begin when begin.Write.Epoch == epoch => world with { WriterWrites = true },
                QuiesceEffect.Answer answer => world with { Answers = world.Answers.Add(answer.Message) },
                _ => throw new InvalidOperationException($"unexpected {effect}"),
            };
        }

        return world;
    }

    // The supervisor's answers to what its vCPUs say: a pause that does not work out is taken back, also from one that stands too late.
    private QuiesceWorld UserTakes(int vcpu, object answer)
    {
        switch (answer)
        {
            case VcpuProtocol.Paused paused when Pauser.Phase == UserPhase.Pausing && paused.RequestId == Pauser.Round:
                return (this with { Pauser = Pauser.Answered(vcpu, agreed: true) }).EndPause();
            case VcpuProtocol.Refused refused when Pauser.Phase == UserPhase.Pausing && refused.RequestId == Pauser.Round:
                return (this with { Pauser = Pauser.Answered(vcpu, agreed: false) }).EndPause();
            case VcpuProtocol.Paused when Pauser.Phase == UserPhase.Running:
                return LetGo([vcpu]);
            default:
                return this;
        }
    }

    private QuiesceWorld EndPause()
    {
        if (!Pauser.Awaited.IsEmpty)
        {
            return this;
        }

        return Pauser.Agreed.Count == Sides.Length ? this with { Pauser = Pauser with { Phase = UserPhase.Paused } } : LetGo(Pauser.Agreed);
    }

    private QuiesceWorld LetGo(ImmutableSortedSet<int> who) =>
        (this with { Pauser = Pauser.LetGo() }).ToAll(who, id => new VcpuProtocol.Resume(id));

    private QuiesceWorld ToAll(ImmutableSortedSet<int> who, Func<long, VcpuProtocol.IRequest> request)
    {
        QuiesceWorld world = this;
        foreach (int vcpu in who)
        {
            world = world.Send(vcpu, request(Pauser.Round), User);
        }

        return world;
    }

    private QuiesceWorld With(int vcpu, Side side) => this with { Sides = Sides.SetItem(vcpu, side) };

    private QuiesceWorld Send(int vcpu, VcpuProtocol.IRequest request, IActorRef from) =>
        With(vcpu, Sides[vcpu] with { Inbox = Sides[vcpu].Inbox.Add((request, from)) });

    /// <summary>What a vCPU has in common with others. Epochs and rounds only matter by how old they are.</summary>
    public string KeyOf(int vcpu)
    {
        Side side = Sides[vcpu];
        var key = new StringBuilder();
        key.Append((int)side.State.Phase).Append(Quiesce.Awaited.Contains(vcpu) ? 'a' : Quiesce.Standing.Contains(vcpu) ? 's' : '-')
            .Append(Pauser.Awaited.Contains(vcpu) ? 'a' : Pauser.Agreed.Contains(vcpu) ? 's' : '-')
            .Append(side.State.Holders.Contains(Coordinator) ? 'c' : '-').Append(side.State.Holders.Contains(User) ? 'u' : '-');
        foreach (PendingRequest pause in side.State.Pauses)
        {
            Append('p', pause.RequestId, pause.From);
        }

        key.Append(side.State.Stops.Count).Append('|');
        foreach ((VcpuProtocol.IRequest message, IActorRef from) in side.Inbox)
        {
            Append(message is VcpuProtocol.Pause ? 'p' : message is VcpuProtocol.Resume ? 'r' : 's', message.RequestId, from);
        }

        key.Append('|');
        foreach (object word in side.ToCoordinator)
        {
            Append(word is VcpuProtocol.Paused ? 'p' : 'r', IdOf(word), Coordinator);
        }

        foreach (object word in side.ToUser)
        {
            Append(word is VcpuProtocol.Paused ? 'p' : word is VcpuProtocol.Stopped ? 's' : 'r', IdOf(word), User);
        }

        return key.ToString();

        void Append(char what, long id, IActorRef whose) => key.Append(what).Append(whose.Equals(User) ? 'u' : 'c')
            .Append((whose.Equals(User) ? Pauser.Round : Quiesce.Epoch) - id);
    }

    private static long IdOf(object word) => word switch
    {
        VcpuProtocol.Paused paused => paused.RequestId,
        VcpuProtocol.Stopped stopped => stopped.RequestId,
        _ => ((VcpuProtocol.Refused)word).RequestId,
    };

    /// <summary>A vCPU, what it has yet to read, and what others have yet to read from it.</summary>
    internal sealed record Side(
        VcpuState State,
        ImmutableList<(VcpuProtocol.IRequest Message, IActorRef From)> Inbox,
        ImmutableList<object> ToCoordinator,
        ImmutableList<object> ToUser)
    {
        public Side Take(object message, IActorRef from)
        {
            VcpuTransition transition = VcpuStateMachine.Next(State, message, from);
            Side after = this with
            {
                State = transition.State,
                ToCoordinator = ToCoordinator.AddRange(WordsTo(Coordinator)),
                ToUser = ToUser.AddRange(WordsTo(User)),
            };
            return transition.Effects.Any(effect => effect is VcpuEffect.EndThread)
                ? after.Take(new VcpuProtocol.ThreadEnded(), from)
                : after;

            // Nobody does anything but measure when a vCPU says that it was let go.
            IEnumerable<object> WordsTo(IActorRef whom) => transition.Effects.OfType<VcpuEffect.Reply>()
                .Where(reply => reply.To.Equals(whom) && reply.Answer is not VcpuProtocol.Resumed)
                .Select(reply => reply.Answer);
        }
    }

    /// <summary>What the user is about.</summary>
    internal enum UserPhase
    {
        Running,
        Pausing,
        Paused,
        Ending,
    }

    /// <summary>The user's pause.</summary>
    internal sealed record UserSide(UserPhase Phase, long Round, ImmutableSortedSet<int> Awaited, ImmutableSortedSet<int> Agreed)
    {
        public static UserSide Initial { get; } = new(UserPhase.Running, 0, [], []);

        public UserSide Pause(ImmutableSortedSet<int> vcpus) => new(UserPhase.Pausing, Round + 1, vcpus, []);

        public UserSide LetGo() => new(UserPhase.Running, Round + 1, [], []);

        public UserSide Answered(int vcpu, bool agreed) =>
            this with { Awaited = Awaited.Remove(vcpu), Agreed = agreed ? Agreed.Add(vcpu) : Agreed };
    }
}
