using Akka.Actor;
using Dmp.Actors.Vcpus;
using Dmp.Kvm.Machine;
using static Dmp.Actors.Vcpus.VcpuProtocol;

namespace Dmp.Actors.Specs.Vcpus;

/// <summary>The whole table: what every state answers to every message.</summary>
public class VcpuStateMachineSpecs
{
    private static readonly IActorRef Sender = ActorRefs.Nobody;
    private static readonly IActorRef User = new NamedRef("machine");
    private static readonly IActorRef Patcher = new NamedRef("quiesce");

    public static TheoryData<string, string, VcpuPhase, string> Table
    {
        get
        {
            var table = new TheoryData<string, string, VcpuPhase, string>();
            foreach (string row in Rows.Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries))
            {
                string[] cells = row.Split('|', StringSplitOptions.TrimEntries);
                table.Add(cells[0], cells[1], Enum.Parse<VcpuPhase>(cells[2]), cells[3]);
            }

            return table;
        }
    }

    // from              | message    | to       | effects
    private const string Rows = """
        Starting         | ready      | Paused   |
        Starting         | pause      | Starting |
        Starting         | resume     | Starting | Refused
        Starting         | stop       | Starting |
        Starting         | describe   | Starting | Refused
        Starting         | paused     | Starting | Warn
        Starting         | poweredoff | Starting | Warn
        Starting         | threw      | Starting | Warn
        Starting         | ended      | Stopped  | Crashed
        Starting+pause   | ready      | Paused   | Paused
        Starting+pause   | ended      | Stopped  | Refused Crashed
        Starting+stop    | ready      | Stopped  | EndThread
        Starting+stop    | pause      | Starting | Refused
        Running          | ready      | Running  | Warn
        Running          | pause      | Pausing  | RequestPause
        Running          | resume     | Running  | Resumed
        Running          | stop       | Pausing  | RequestPause
        Running          | describe   | Running  | Refused
        Running          | paused     | Running  | RunGuest
        Running          | poweredoff | Stopped  | EndThread Ended
        Running          | threw      | Crashed  | Crashed
        Running          | ended      | Stopped  | Crashed
        Pausing+pause    | ready      | Pausing  | Warn
        Pausing+pause    | pause      | Pausing  |
        Pausing+pause    | resume     | Pausing  | Refused
        Pausing+pause    | stop       | Pausing  |
        Pausing+pause    | describe   | Pausing  | Refused
        Pausing+pause    | paused     | Paused   | Paused
        Pausing+pause    | poweredoff | Stopped  | EndThread Ended Refused
        Pausing+pause    | threw      | Crashed  | Crashed Refused
        Pausing+pause    | ended      | Stopped  | Refused Crashed
        Pausing+stop     | pause      | Pausing  | Refused
        Pausing+stop     | stop       | Pausing  |
        Pausing+stop     | paused     | Stopped  | EndThread
        Pausing+stop     | poweredoff | Stopped  | EndThread Ended
        Pausing+stop     | threw      | Stopped  | Crashed EndThread
        Pausing+stop     | ended      | Stopped  | Crashed Stopped
        Pausing+both     | paused     | Stopped  | EndThread Refused
        Pausing+both     | threw      | Stopped  | Crashed Refused EndThread
        Paused           | ready      | Paused   | Warn
        Paused           | pause      | Paused   | Paused
        Paused           | resume     | Running  | RunGuest Resumed
        Paused           | stop       | Stopped  | EndThread
        Paused           | describe   | Paused   | Describe
        Paused           | paused     | Paused   | Warn
        Paused           | poweredoff | Paused   | Warn
        Paused           | threw      | Paused   | Warn
        Paused           | ended      | Stopped  | Crashed
        Crashed          | ready      | Crashed  | Warn
        Crashed          | pause      | Crashed  | Refused
        Crashed          | resume     | Crashed  | Refused
        Crashed          | stop       | Stopped  | EndThread
        Crashed          | describe   | Crashed  | Describe
        Crashed          | paused     | Crashed  | Warn
        Crashed          | poweredoff | Crashed  | Warn
        Crashed          | threw      | Crashed  | Warn
        Crashed          | ended      | Stopped  | Crashed
        Stopped          | ready      | Stopped  | Warn
        Stopped          | pause      | Stopped  | Refused
        Stopped          | resume     | Stopped  | Refused
        Stopped          | stop       | Stopped  |
        Stopped          | describe   | Stopped  | Describe
        Stopped          | paused     | Stopped  | Warn
        Stopped          | poweredoff | Stopped  | Warn
        Stopped          | threw      | Stopped  | Warn
        Stopped          | ended      | Stopped  |
        Stopped+stop     | ended      | Stopped  | Stopped
        Stopped+thread   | stop       | Stopped  | Stopped
        Stopped+thread   | describe   | Stopped  | Describe
        Stopped+thread   | ended      | Stopped  | Warn
        """;

    [Theory(DisplayName = "Every message has its answer in every state")]
    [MemberData(nameof(Table))]
    public void Every_message_has_its_answer(string from, string message, VcpuPhase to, string effects)
    {
        VcpuTransition transition = VcpuStateMachine.Next(StateNamed(from), MessageNamed(message), Sender);
        Assert.Equal(to, transition.State.Phase);
        Assert.Equal(effects, string.Join(' ', transition.Effects.Select(Name)));
    }

    [Fact(DisplayName = "The table leaves out no state and no message")]
    public void The_table_is_complete()
    {
        IEnumerable<(string, string)> rows = Rows
            .Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries)
            .Select(row => row.Split('|', StringSplitOptions.TrimEntries))
            .Select(cells => (cells[0].Split('+')[0], cells[1]));
        string[] messages = ["ready", "pause", "resume", "stop", "describe", "paused", "poweredoff", "threw", "ended"];
        Assert.Empty(Enum.GetNames<VcpuPhase>().SelectMany(phase => messages.Select(message => (phase, message))).Except(rows));
    }

    [Fact(DisplayName = "Every request that waits is answered, exactly once")]
    public void Waiting_requests_are_answered_once()
    {
        VcpuState state = StateNamed("Running");
        var answers = new List<long>();
        foreach (object message in new object[]
                 {
                     new Pause(1), new Pause(2), new Stop(3), new Stop(4), new Pause(5),
                     new RunReturned(new VcpuStop.Paused()), new ThreadEnded(), new Stop(6), new Pause(7),
                 })
        {
            VcpuTransition transition = VcpuStateMachine.Next(state, message, Sender);
            state = transition.State;
            answers.AddRange(transition.Effects.OfType<VcpuEffect.Reply>().Select(reply => reply.Answer switch
            {
                Refused refused => refused.RequestId,
                Stopped stopped => stopped.RequestId,
                _ => throw new InvalidOperationException($"unexpected {reply.Answer}"),
            }));
        }

        Assert.Equal([5, 1, 2, 3, 4, 6, 7], answers);
    }

    [Fact(DisplayName = "A vCPU that two hold goes on when both have let go, whichever does so first")]
    public void Two_holders()
    {
        foreach ((IActorRef first, IActorRef second) in new[] { (User, Patcher), (Patcher, User) })
        {
            VcpuState state = Run(StateNamed("Running"), (new Pause(1), User), (new Pause(2), Patcher)).State;
            VcpuTransition stood = Run(state, (new RunReturned(new VcpuStop.Paused()), Sender));
            Assert.Equal("Paused Paused", Names(stood));

            VcpuTransition one = Run(stood.State, (new Resume(3), first));
            Assert.Equal((VcpuPhase.Paused, "Resumed"), (one.State.Phase, Names(one)));
            VcpuTransition both = Run(one.State, (new Resume(4), second));
            Assert.Equal((VcpuPhase.Running, "RunGuest Resumed"), (both.State.Phase, Names(both)));
        }
    }

    [Fact(DisplayName = "Who has asked twice lets go once, and who lets go twice lets go of nothing that is another's")]
    public void Repeated_words()
    {
        VcpuState state = Run(StateNamed("Paused"), (new Pause(1), User), (new Pause(2), User), (new Pause(3), Patcher)).State;
        state = Run(state, (new Resume(4), User), (new Resume(5), User)).State;
        Assert.Equal(VcpuPhase.Paused, state.Phase);
        Assert.Equal(VcpuPhase.Running, Run(state, (new Resume(6), Patcher)).State.Phase);
    }

    [Fact(DisplayName = "Who comes later than the stop holds the vCPU all the same")]
    public void Late_holder()
    {
        VcpuState state = Run(StateNamed("Running"), (new Pause(1), Patcher), (new RunReturned(new VcpuStop.Paused()), Sender)).State;
        VcpuTransition late = Run(state, (new Pause(2), User));
        Assert.Equal("Paused", Names(late));
        Assert.Equal(VcpuPhase.Paused, Run(late.State, (new Resume(3), Patcher)).State.Phase);
    }

    [Fact(DisplayName = "A pause that was refused holds nothing, and a stop ends a vCPU whoever holds it")]
    public void Refused_and_stopped()
    {
        VcpuState stopping = Run(StateNamed("Running"), (new Stop(1), Sender), (new Pause(2), User)).State;
        Assert.Empty(stopping.Holders);

        VcpuState held = Run(StateNamed("Paused"), (new Pause(1), User), (new Pause(2), Patcher)).State;
        Assert.Equal(VcpuPhase.Stopped, Run(held, (new Stop(3), Sender)).State.Phase);
    }

    private static VcpuTransition Run(VcpuState state, params (object Message, IActorRef From)[] messages)
    {
        VcpuTransition transition = new(state, []);
        foreach ((object message, IActorRef from) in messages)
        {
            transition = VcpuStateMachine.Next(transition.State, message, from);
        }

        return transition;
    }

    private static string Names(VcpuTransition transition) => string.Join(' ', transition.Effects.Select(Name));

    private static VcpuState StateNamed(string name)
    {
        string[] parts = name.Split('+');
        VcpuState state = VcpuState.Initial(0) with { Phase = Enum.Parse<VcpuPhase>(parts[0]) };
        var waiting = new PendingRequest(100, Sender);
        return parts.ElementAtOrDefault(1) switch
        {
            "pause" => state with { Pauses = [waiting] },
            "stop" => state with { Stops = [waiting] },
            "both" => state with { Pauses = [waiting], Stops = [waiting] },
            "thread" => state with { ThreadEnded = true },
            _ => state,
        };
    }

    private static object MessageNamed(string name) => name switch
    {
        "ready" => new ThreadReady(),
        "pause" => new Pause(1),
        "resume" => new Resume(1),
        "stop" => new Stop(1),
        "describe" => new Describe(1),
        "paused" => new RunReturned(new VcpuStop.Paused()),
        "poweredoff" => new RunReturned(new VcpuStop.PoweredOff()),
        "threw" => new RunThrew(new InvalidOperationException()),
        _ => new ThreadEnded(),
    };

    private static string Name(VcpuEffect effect) => effect switch
    {
        VcpuEffect.Reply reply => reply.Answer.GetType().Name,
        VcpuEffect.Notify notify => notify.Notice.GetType().Name,
        VcpuEffect.ReplyDescription => "Describe",
        _ => effect.GetType().Name,
    };
}
