using System.Collections.Concurrent;
using System.Collections.Immutable;
using System.Diagnostics;
using Akka.Actor;
using Akka.TestKit;
using Dmp.Actors.Quiesce;
using Dmp.Actors.Vcpus;
using Dmp.Actors.Writing;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Specs.Quiesce;

/// <summary>
/// The actors of a <see cref="QuiesceWorld"/>: a coordinator and vCPUs with their threads, and mailmen between them who keep every
/// message until its time has come. Plays one order of events, and compares what is under way with the world after each.
/// </summary>
internal sealed class QuiesceStage : IDisposable
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);

    private readonly ActorSystem system;
    private readonly IActorRef parent;
    private readonly IActorRef coordinator;
    private readonly FakeVcpu[] fakes;
    private readonly IActorRef[] vcpus;
    private readonly int[] entries;
    private readonly Mailman[] toVcpu;
    private readonly Mailman[] fromUser;
    private readonly Mailman[] toCoordinator;
    private readonly Mailman writer = new("writer");
    private readonly Mailman planner = new("planner");
    private readonly Mailman watcher = new("watcher");
    private readonly HashSet<(long Epoch, int Vcpu)> released = [];
    private QuiesceWorld world;

    private QuiesceStage(ActorSystem system, QuiesceWorld world)
    {
        this.system = system;
        this.world = world;
        int count = world.Sides.Length;
        var events = new ConcurrentQueue<string>();
        var clock = new StopClock(count);
        fakes = [.. Enumerable.Range(0, count).Select(index => new FakeVcpu(index, events) { IgnoresPause = true })];
        parent = system.ActorOf<Parent>();
        vcpus = [.. fakes.Select(fake => Child(VcpuActor.Props(fake, clock)))];
        entries = new int[count];
        toVcpu = Mailmen("to-vcpu");
        fromUser = Mailmen("from-user");
        toCoordinator = Mailmen("to-coordinator");
        coordinator = Child(QuiesceCoordinator.Props(
            toVcpu.Select((mailman, index) => KeyValuePair.Create(index, (IActorRef)mailman)).ToImmutableSortedDictionary(),
            writer,
            clock,
            Settings.Shipped));

        IActorRef Child(Props props) => parent.Ask<IActorRef>(props, Limit).GetAwaiter().GetResult();

        Mailman[] Mailmen(string name) => [.. fakes.Select(fake => new Mailman($"{name}-{fake.Index}"))];
    }

    /// <summary>Plays an order of events.</summary>
    /// <param name="system">With a scheduler whose time only specs move, and actors that run on whose thread tells them something.</param>
    /// <param name="world">The world at the beginning.</param>
    /// <param name="steps">The events, to the world's end.</param>
    public static void Play(ActorSystem system, QuiesceWorld world, IEnumerable<WorldStep> steps)
    {
        using var stage = new QuiesceStage(system, world);
        stage.Begin();
        foreach (WorldStep step in steps)
        {
            stage.Play(step);
        }

        stage.End();
    }

    public void Dispose()
    {
        system.Stop(parent);
        foreach (FakeVcpu fake in fakes)
        {
            // Its thread ends when the guest does.
            fake.Stop(new VcpuStop.PoweredOff());
        }
    }

    // A vCPU runs when somebody has held it and let go.
    private void Begin()
    {
        var starter = new Mailman("starter");
        for (int vcpu = 0; vcpu < vcpus.Length; vcpu++)
        {
            vcpus[vcpu].Tell(new VcpuProtocol.Pause(0), starter);
            Settle(vcpu, stands: true);
            vcpus[vcpu].Tell(new VcpuProtocol.Resume(0), starter);
            entries[vcpu]++;
            Settle(vcpu, stands: false);
        }
    }

    private void Play(WorldStep step)
    {
        QuiesceWorld before = world;
        world = world.After(step);
        switch (step.What)
        {
            case Happening.Commit:
                coordinator.Tell(new QuiesceProtocol.Commit(before.CommitsLeft, before.CommitsLeft, [], []), planner);
                break;
            case Happening.TimeUp:
                ((TestScheduler)system.Scheduler).Advance(Settings.Shipped.QuiesceTimeout);
                break;
            case Happening.Written:
                coordinator.Tell(new WriterProtocol.Written(Written(), [], [], []), writer);
                break;
            case Happening.WriterFails:
                coordinator.Tell(new WriterProtocol.WriteFailed(Written(), "disk", []), writer);
                break;
            case Happening.VcpuTakes:
                (VcpuProtocol.IRequest request, IActorRef from) = before.Sides[step.Vcpu].Inbox[0];
                if (from.Equals(QuiesceWorld.User))
                {
                    vcpus[step.Vcpu].Tell(request, fromUser[step.Vcpu]);
                }
                else
                {
                    vcpus[step.Vcpu].Tell(Next(toVcpu[step.Vcpu], request), toCoordinator[step.Vcpu]);
                    Assert.True(request is not VcpuProtocol.Resume || released.Add((request.RequestId, step.Vcpu)), "let go twice");
                }

                break;
            case Happening.VcpuStands:
                fakes[step.Vcpu].Stop(new VcpuStop.Paused());
                break;
            case Happening.VcpuCrashes:
                fakes[step.Vcpu].Throw(new InvalidOperationException("bug"));
                break;
            case Happening.VcpuEnds:
                fakes[step.Vcpu].Stop(new VcpuStop.PoweredOff());
                break;
            case Happening.CoordinatorTakes:
                coordinator.Tell(Next(toCoordinator[step.Vcpu], before.Sides[step.Vcpu].ToCoordinator[0]), toVcpu[step.Vcpu]);
                break;
            case Happening.UserTakes:
                _ = Next(fromUser[step.Vcpu], before.Sides[step.Vcpu].ToUser[0]);
                break;
        }

        if (step is { Vcpu: >= 0, What: not (Happening.CoordinatorTakes or Happening.UserTakes) })
        {
            VcpuPhase phase = world.Sides[step.Vcpu].State.Phase;
            entries[step.Vcpu] += phase == VcpuPhase.Running && before.Sides[step.Vcpu].State.Phase != phase ? 1 : 0;
            Settle(step.Vcpu, stands: phase is VcpuPhase.Paused or VcpuPhase.Crashed or VcpuPhase.Stopped);
        }

        if (step.What == Happening.CoordinatorTakes || step.Vcpu < 0)
        {
            _ = Answer(coordinator, new QuiesceProtocol.GetStopTimes(0));
        }

        Compare(step);
    }

    private void Compare(WorldStep step)
    {
        for (int vcpu = 0; vcpu < vcpus.Length; vcpu++)
        {
            QuiesceWorld.Side side = world.Sides[vcpu];
            Same(side.Inbox.Where(entry => entry.From.Equals(QuiesceWorld.Coordinator)).Select(entry => entry.Message), toVcpu[vcpu]);
            Same(side.ToCoordinator, toCoordinator[vcpu]);
            Same(side.ToUser, fromUser[vcpu]);
        }

        Assert.Equal(world.WriterWrites, !writer.Mail.IsEmpty);
        Same(world.Answers, planner);

        // That its thread has ended a vCPU learns from the thread itself.
        void Same(IEnumerable<object> expected, Mailman mailman) => Assert.True(
            Eventually(() => expected.Select(Name).SequenceEqual(mailman.Mail.Select(Name))), $"{mailman.Path.Name} after {step}");
    }

    private void End()
    {
        QuiesceInvariants.CheckEnd(world, world.Answers.Count);
        for (int vcpu = 0; vcpu < vcpus.Length; vcpu++)
        {
            // An order to run is carried out a moment later, on the vCPU's own thread.
            int index = vcpu;
            Assert.True(Eventually(() => fakes[index].Runs >= entries[index]), $"vCPU {index} does not run");
            Assert.True(entries[index] == fakes[index].Runs, $"vCPU {index} runs {fakes[index].Runs} times instead of {entries[index]}");
        }
    }

    private long Written()
    {
        Assert.True(writer.Mail.TryDequeue(out object? write));
        return ((WriterProtocol.Write)write).Epoch;
    }

    private static object Next(Mailman mailman, object expected)
    {
        Assert.True(mailman.Mail.TryDequeue(out object? message));
        Assert.Equal(Name(expected), Name(message));
        return message;
    }

    // Text and type of a reason, and where a message ends up, are not the protocol's.
    private static string Name(object message) => message switch
    {
        VcpuProtocol.IRequest request => $"{message.GetType().Name} {request.RequestId}",
        VcpuProtocol.Paused paused => $"Paused {paused.RequestId}",
        VcpuProtocol.Refused refused => $"Refused {refused.RequestId} {refused.Phase}",
        VcpuProtocol.Stopped stopped => $"Stopped {stopped.RequestId}",
        QuiesceProtocol.Committed committed => $"Committed {committed.RequestId}",
        _ => $"Aborted {((QuiesceProtocol.Aborted)message).RequestId}",
    };

    // A description is only given away by a vCPU that stands, so that the answer says how far its thread's news have come.
    private void Settle(int vcpu, bool stands)
    {
        Assert.True(
            Eventually(
                () => Answer(vcpus[vcpu], new VcpuProtocol.Describe(0)) is VcpuProtocol.Described == stands),
            $"vCPU {vcpu} does not {(stands ? "stand" : "run")}");
    }

    private object Answer(IActorRef actor, object question)
    {
        actor.Tell(question, watcher);
        object? answer = null;
        Assert.True(Eventually(() => watcher.Mail.TryDequeue(out answer)), $"no answer to {question}");
        return answer!;
    }

    private static bool Eventually(Func<bool> condition)
    {
        long start = Stopwatch.GetTimestamp();
        while (!condition())
        {
            if (Stopwatch.GetElapsedTime(start) > Limit)
            {
                return false;
            }

            Thread.Yield();
        }

        return true;
    }

    /// <summary>Has children, and does nothing about what becomes of them.</summary>
    private sealed class Parent : ReceiveActor
    {
        public Parent()
        {
            Receive<Props>(props => Sender.Tell(Context.ActorOf(props)));
            ReceiveAny(_ => { });
        }
    }

    /// <summary>Keeps what it is told.</summary>
    private sealed class Mailman(string name) : MinimalActorRef
    {
        public ConcurrentQueue<object> Mail { get; } = new();

        public override ActorPath Path { get; } = new RootActorPath(Address.AllSystems) / name;

        public override IActorRefProvider Provider => throw new NotSupportedException();

        protected override void TellInternal(object message, IActorRef sender)
        {
            if (message is not VcpuProtocol.Resumed)
            {
                Mail.Enqueue(message);
            }
        }
    }
}
