using Akka.Actor;
using Akka.TestKit;
using Akka.TestKit.Xunit2;

namespace Dmp.Actors.Specs;

/// <summary>Restarts its child whatever happens, as the machine's supervisor does, and passes on what the child tells it.</summary>
internal sealed class RestartingParent : UntypedActor
{
    private readonly IActorRef listener;

    private RestartingParent(Props child, IActorRef listener)
    {
        this.listener = listener;
        listener.Tell(Context.ActorOf(child, "child"), Self);
    }

    /// <summary>Creates an actor under such a parent.</summary>
    /// <param name="kit">The spec.</param>
    /// <param name="child">The actor.</param>
    /// <param name="listener">Gets the actor, and then what the actor tells its parent.</param>
    public static IActorRef Of(TestKit kit, Props child, TestProbe listener)
    {
        kit.ActorOf(Props.CreateBy(new Producer(child, listener.Ref)));
        return listener.ExpectMsg<IActorRef>(TimeSpan.FromSeconds(30));
    }

    protected override SupervisorStrategy SupervisorStrategy() => new OneForOneStrategy(_ => Directive.Restart);

    protected override void OnReceive(object message) => listener.Forward(message);

    private sealed class Producer(Props child, IActorRef listener) : IIndirectActorProducer
    {
        public Type ActorType => typeof(RestartingParent);

        public ActorBase Produce() => new RestartingParent(child, listener);

        public void Release(ActorBase actor)
        {
        }
    }
}
