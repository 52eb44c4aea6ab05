using Akka.Actor;

namespace Dmp.Actors.Specs;

/// <summary>An actor's address without an actor: for state machines, which only compare senders.</summary>
internal sealed class NamedRef(string name) : MinimalActorRef
{
    public override ActorPath Path { get; } = new RootActorPath(Address.AllSystems) / name;

    public override IActorRefProvider Provider => throw new NotSupportedException();
}
