using Akka.Actor;
using Akka.Event;
using Dmp.Actors.Quiesce;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Vcpus;

/// <summary>
/// Owns one vCPU and its thread. All decisions are <see cref="VcpuStateMachine"/>'s; this actor carries out the effects.
/// </summary>
public sealed class VcpuActor : UntypedActor
{
    private readonly ILoggingAdapter log = Context.GetLogger();
    private readonly IVcpu vcpu;
    private readonly VcpuThread thread;
    private VcpuState state;

    private VcpuActor(IVcpu vcpu, StopClock? clock)
    {
        this.vcpu = vcpu;
        thread = new VcpuThread(vcpu, Self, clock);
        state = VcpuState.Initial(vcpu.Index);
    }

    /// <summary>How to create the actor of a vCPU.</summary>
    /// <param name="vcpu">The vCPU.</param>
    /// <param name="clock">Notes when its thread stops and goes on; null when nobody wants to know.</param>
    public static Props Props(IVcpu vcpu, StopClock? clock = null) =>
        Akka.Actor.Props.CreateBy(new Producer(vcpu, clock)).WithDispatcher(ControlSettings.Dispatcher);

    /// <inheritdoc />
    protected override void PreStart() => thread.Start();

    /// <inheritdoc />
    protected override void PostStop()
    {
        // Only matters when the actor goes before its vCPU was stopped; the thread then winds down by itself.
        thread.End();
        thread.RequestPause();
    }

    /// <inheritdoc />
    protected override void OnReceive(object message)
    {
        VcpuTransition transition = VcpuStateMachine.Next(state, message, Sender);
        state = transition.State;
        try
        {
            transition.Effects.ForEach(CarryOut);
        }
        catch (Exception failure)
        {
            // Not left to supervision: a restart would lose the thread. The supervisor ends the machine with what is known.
            Context.Parent.Tell(new VcpuProtocol.Crashed(vcpu.Index, failure));
        }
    }

    private void CarryOut(VcpuEffect effect)
    {
        switch (effect)
        {
            case VcpuEffect.RunGuest:
                thread.RunGuest();
                break;
            case VcpuEffect.RequestPause:
                thread.RequestPause();
                break;
            case VcpuEffect.EndThread:
                thread.End();
                break;
            case VcpuEffect.Reply reply:
                reply.To.Tell(reply.Answer);
                break;
            case VcpuEffect.ReplyDescription describe:
                describe.To.Tell(new VcpuProtocol.Described(describe.RequestId, vcpu.Index, Description()));
                break;
            case VcpuEffect.Notify notify:
                Context.Parent.Tell(notify.Notice);
                break;
            case VcpuEffect.Warn warn:
                log.Warning("{0}", warn.Text);
                break;
        }
    }

    // A vCPU that has just crashed may well fail to describe itself; that must not cost the report.
    private string Description()
    {
        try
        {
            return vcpu.DescribeState();
        }
        catch (Exception failure)
        {
            return $"(the state cannot be read: {failure.Message})";
        }
    }

    private sealed class Producer(IVcpu vcpu, StopClock? clock) : IIndirectActorProducer
    {
        public Type ActorType => typeof(VcpuActor);

        public ActorBase Produce() => new VcpuActor(vcpu, clock);

        public void Release(ActorBase actor)
        {
        }
    }
}
