using System.Collections.Immutable;
using Akka.Actor;
using Dmp.Actors.Vcpus;
using Dmp.Actors.Writing;
using static Dmp.Actors.Quiesce.QuiesceProtocol;

namespace Dmp.Actors.Quiesce;

/// <summary>
/// Stops the world for the writer, one epoch at a time. All decisions are <see cref="QuiesceStateMachine"/>'s; this actor carries out the
/// effects. It holds vCPUs as any other pauser does: one that the supervisor holds as well goes on only when both let go.
/// </summary>
public sealed class QuiesceCoordinator : ReceiveActor, IWithTimers
{
    private const string StopTimer = "stop";

    private readonly ImmutableSortedDictionary<int, IActorRef> vcpus;
    private readonly IActorRef writer;
    private readonly StopClock clock;
    private readonly ControlSettings settings;
    private readonly Dictionary<long, IActorRef> askers = [];
    private readonly List<double> stops = [];
    private QuiesceState state;
    private bool measureDue;

    /// <summary>Creates the actor; use <see cref="Props"/>.</summary>
    /// <param name="vcpus">The vCPUs' actors.</param>
    /// <param name="writer">The writer.</param>
    /// <param name="clock">The vCPUs' stops.</param>
    /// <param name="settings">Times.</param>
    public QuiesceCoordinator(
        ImmutableSortedDictionary<int, IActorRef> vcpus, IActorRef writer, StopClock clock, ControlSettings settings)
    {
        this.vcpus = vcpus;
        this.writer = writer;
        this.clock = clock;
        this.settings = settings;
        state = QuiesceState.Initial(vcpus.Keys);
        Receive<Commit>(commit =>
        {
            askers[commit.RequestId] = Sender;
            Step(new QuiesceEvent.Asked(commit));
        });
        Receive<GetStopTimes>(get =>
        {
            Measure();
            Sender.Tell(new StopTimes(get.RequestId, [.. stops.Order()]));
        });
        Receive<VcpuProtocol.Paused>(paused => Step(new QuiesceEvent.Stood(paused.RequestId, paused.Vcpu)));
        Receive<VcpuProtocol.Refused>(refused => Step(new QuiesceEvent.Declined(refused.RequestId, refused.Vcpu, refused.Reason)));
        Receive<VcpuProtocol.Resumed>(_ => { });
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
        ImmutableSortedDictionary<int, IActorRef> vcpus, IActorRef writer, StopClock clock, ControlSettings settings) =>
        Akka.Actor.Props.Create(() => new QuiesceCoordinator(vcpus, writer, clock, settings)).WithDispatcher(ControlSettings.Dispatcher);

    /// <inheritdoc />
    protected override void PreRestart(Exception reason, object message)
    {
        // Nobody else knows what this actor holds, and who waits for it.
        foreach (IActorRef vcpu in vcpus.Values)
        {
            vcpu.Tell(new VcpuProtocol.Resume(state.Epoch));
        }

        foreach (Commit commit in state.Waiting.Prepend(state.Current).OfType<Commit>())
        {
            askers.GetValueOrDefault(commit.RequestId)?.Tell(new Aborted(commit.RequestId, commit, "the coordinator failed"));
        }

        base.PreRestart(reason, message);
    }

    private void Step(QuiesceEvent happened)
    {
        QuiesceTransition transition = QuiesceStateMachine.Next(state, happened);
        state = transition.State;
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
                Measure();
                vcpus[stop.Vcpu].Tell(new VcpuProtocol.Pause(state.Epoch));
                break;
            case QuiesceEffect.Release release:
                vcpus[release.Vcpu].Tell(new VcpuProtocol.Resume(state.Epoch));
                break;
            case QuiesceEffect.StartTimer:
                Timers.StartSingleTimer(StopTimer, new TimeUp(state.Epoch), settings.QuiesceTimeout);
                break;
            case QuiesceEffect.CancelTimer:
                Timers.Cancel(StopTimer);
                break;
            case QuiesceEffect.Begin begin:
                measureDue = true;
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
        if (askers.Remove(requestId, out IActorRef? asker))
        {
            asker.Tell(answer);
        }
    }

    // The threads go on after their actors have said so: the last epoch is measured when the next one begins, or somebody asks.
    private void Measure()
    {
        if (measureDue && clock.LastStop() is { } stop)
        {
            measureDue = false;
            stops.Add(stop.TotalMicroseconds);
        }
    }

    private sealed record TimeUp(long Epoch);
}
