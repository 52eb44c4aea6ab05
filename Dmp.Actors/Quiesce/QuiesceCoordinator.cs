using System.Collections.Immutable;
using Akka.Actor;
using Dmp.Actors.Vcpus;
using Dmp.Actors.Writing;
using static Dmp.Actors.Quiesce.QuiesceProtocol;

namespace Dmp.Actors.Quiesce;

/// <summary>
/// Stops the world for the writer, one epoch at a time. All decisions are <see cref="QuiesceStateMachine"/>'s; this actor carries out the
/// effects. Should it fail, its successor goes on with the very same epoch: nobody else knows which vCPUs it holds, or whether the writer
/// writes. It holds vCPUs as any other pauser does: one that the supervisor holds as well goes on only when both let go.
/// </summary>
public sealed class QuiesceCoordinator : ReceiveActor, IWithTimers
{
    private const string StopTimer = "stop";

    private readonly ImmutableSortedDictionary<int, IActorRef> vcpus;
    private readonly IActorRef writer;
    private readonly StopClock clock;
    private readonly ControlSettings settings;
    private readonly QuiesceMemory memory;

    /// <summary>Creates the actor; use <see cref="Props"/>.</summary>
    /// <param name="vcpus">The vCPUs' actors.</param>
    /// <param name="writer">The writer.</param>
    /// <param name="clock">The vCPUs' stops.</param>
    /// <param name="settings">Times.</param>
    /// <param name="memory">What is known; outlives the actor.</param>
    public QuiesceCoordinator(
        ImmutableSortedDictionary<int, IActorRef> vcpus,
        IActorRef writer,
        StopClock clock,
        ControlSettings settings,
        QuiesceMemory memory)
    {
        this.vcpus = vcpus;
        this.writer = writer;
        this.clock = clock;
        this.settings = settings;
        this.memory = memory;
        Receive<Commit>(commit =>
        {
            memory.Askers[commit.RequestId] = Sender;
            Step(new QuiesceEvent.Asked(commit));
        });
        Receive<GetStopTimes>(get =>
        {
            Measure();
            Sender.Tell(new StopTimes(get.RequestId, [.. memory.Lengths.Order()]));
        });
        Receive<VcpuProtocol.Paused>(paused => Step(new QuiesceEvent.Stood(paused.RequestId, paused.Vcpu)));
        Receive<VcpuProtocol.Refused>(refused => Step(new QuiesceEvent.Declined(refused.RequestId, refused.Vcpu, refused.Reason)));
        Receive<VcpuProtocol.Resumed>(OnResumed);
        Receive<TimeUp>(up => Step(new QuiesceEvent.TimedOut(up.Epoch)));
        Receive<WriterProtocol.Written>(written => Step(new QuiesceEvent.Wrote(written)));
        Receive<WriterProtocol.WriteFailed>(failed => Step(new QuiesceEvent.WriterFailed(failed)));
    }

    /// <inheritdoc />
    public ITimerScheduler Timers { get; set; } = null!;

    /// <summary>How to create the coordinator.</summary>
    /// <param name="vcpus">The vCPUs' actors.</param>
    /// <param name="writer">The writer.</param>
    /// <param name="clock">The vCPUs' stops.</param>
    /// <param name="settings">Times.</param>
    public static Props Props(
        ImmutableSortedDictionary<int, IActorRef> vcpus, IActorRef writer, StopClock clock, ControlSettings settings)
    {
        var memory = new QuiesceMemory(vcpus.Keys);
        return Akka.Actor.Props.Create(() => new QuiesceCoordinator(vcpus, writer, clock, settings, memory))
            .WithDispatcher(ControlSettings.Dispatcher);
    }

    /// <inheritdoc />
    protected override void PreStart()
    {
        if (memory.State.Phase == QuiescePhase.Stopping)
        {
            // A restart cancels the timers.
            CarryOut(new QuiesceEffect.StartTimer(memory.State.Epoch));
        }
    }

    /// <inheritdoc />
    protected override void PreRestart(Exception reason, object message)
    {
        // Words that cannot be missed: nothing but the writer's ends the epoch, and a vCPU that is not known to stand is let go by
        // nobody. Heard twice, each of them does nothing.
        if (message is WriterProtocol.Written or WriterProtocol.WriteFailed or VcpuProtocol.Paused or VcpuProtocol.Refused)
        {
            Self.Tell(message, Sender);
        }

        base.PreRestart(reason, message);
    }

    private void Step(QuiesceEvent happened)
    {
        QuiesceTransition transition = QuiesceStateMachine.Next(memory.State, happened);
        memory.State = transition.State;
        foreach (QuiesceEffect effect in transition.Effects)
        {
            CarryOut(effect);
        }
    }

    private void CarryOut(QuiesceEffect effect)
    {
        switch (effect)
        {
            case QuiesceEffect.Stop stop:
                vcpus[stop.Vcpu].Tell(new VcpuProtocol.Pause(stop.Epoch));
                break;
            case QuiesceEffect.Release release:
                vcpus[release.Vcpu].Tell(new VcpuProtocol.Resume(release.Epoch));
                break;
            case QuiesceEffect.StartTimer start:
                memory.Asked = StopClock.Now;
                Timers.StartSingleTimer(StopTimer, new TimeUp(start.Epoch), settings.QuiesceTimeout);
                break;
            case QuiesceEffect.CancelTimer:
                Timers.Cancel(StopTimer);
                break;
            case QuiesceEffect.Begin begin:
                Measure();
                memory.Stop = clock.Stand(memory.Asked) is { } stand ? (begin.Write.Epoch, stand) : null;
                writer.Tell(begin.Write);
                break;
            case QuiesceEffect.Answer { Message: Committed committed }:
                Answer(committed.RequestId, committed);
                break;
            case QuiesceEffect.Answer { Message: Aborted aborted }:
                Answer(aborted.RequestId, aborted);
                break;
        }
    }

    private void Answer(long requestId, object answer)
    {
        if (memory.Askers.Remove(requestId, out IActorRef? asker))
        {
            asker.Tell(answer);
        }
    }

    // One that somebody else goes on holding does not stand for the transaction any more, and its entry is not the end of this stop.
    private void OnResumed(VcpuProtocol.Resumed resumed)
    {
        if (!resumed.Runs && memory.Stop?.Epoch == resumed.RequestId)
        {
            memory.Stop = null;
        }
    }

    // The threads go on after their actors have said so: an epoch is measured when all stand for the next one, or somebody asks.
    private void Measure()
    {
        if (memory.Stop?.Stop.Length is { } length)
        {
            memory.Stop = null;
            memory.Lengths.Add(length.TotalMicroseconds);
        }
    }

    private sealed record TimeUp(long Epoch);
}

/// <summary>What a coordinator leaves to its successor. Only ever touched by one of them at a time.</summary>
/// <param name="vcpus">All vCPUs.</param>
public sealed class QuiesceMemory(IEnumerable<int> vcpus)
{
    /// <summary>State of the epoch.</summary>
    internal QuiesceState State { get; set; } = QuiesceState.Initial(vcpus);

    /// <summary>Who waits for the answer to which request.</summary>
    internal Dictionary<long, IActorRef> Askers { get; } = [];

    /// <summary>How long the world stood, epoch by epoch, in microseconds.</summary>
    internal List<double> Lengths { get; } = [];

    /// <summary>When the vCPUs were asked to stand, the last time.</summary>
    internal long Asked { get; set; }

    /// <summary>The last stop, until it is measured.</summary>
    internal (long Epoch, WorldStop Stop)? Stop { get; set; }
}
