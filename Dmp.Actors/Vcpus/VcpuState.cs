using System.Collections.Immutable;
using Akka.Actor;

namespace Dmp.Actors.Vcpus;

/// <summary>States of a vCPU.</summary>
public enum VcpuPhase
{
    /// <summary>Its thread is not there yet.</summary>
    Starting,

    /// <summary>It runs guest code.</summary>
    Running,

    /// <summary>It was asked to stop at a safe point, and is not there yet.</summary>
    Pausing,

    /// <summary>It stands at a safe point.</summary>
    Paused,

    /// <summary>Its emulator failed. The state is kept for the report; it never runs again.</summary>
    Crashed,

    /// <summary>It ended, or was ended. It never runs again.</summary>
    Stopped,
}

/// <summary>A request whose answer is due later.</summary>
/// <param name="RequestId">Id of the request.</param>
/// <param name="From">Who gets the answer.</param>
public sealed record PendingRequest(long RequestId, IActorRef From);

/// <summary>What a vCPU's actor knows.</summary>
/// <param name="Vcpu">Index of the vCPU.</param>
/// <param name="Phase">State it is in.</param>
/// <param name="Pauses">Pause requests not answered yet.</param>
/// <param name="Stops">Stop requests not answered yet.</param>
/// <param name="ThreadEnded">Whether the thread has said its last word.</param>
/// <param name="Holders">Who has asked for a pause and not let go yet: the vCPU runs only when nobody holds it.</param>
public sealed record VcpuState(
    int Vcpu,
    VcpuPhase Phase,
    ImmutableList<PendingRequest> Pauses,
    ImmutableList<PendingRequest> Stops,
    bool ThreadEnded,
    ImmutableHashSet<IActorRef> Holders)
{
    /// <summary>The state a vCPU begins in.</summary>
    /// <param name="vcpu">Index of the vCPU.</param>
    public static VcpuState Initial(int vcpu) => new(vcpu, VcpuPhase.Starting, [], [], ThreadEnded: false, []);
}

/// <summary>What is to be done on a transition.</summary>
public abstract record VcpuEffect
{
    private VcpuEffect()
    {
    }

    /// <summary>Have the thread call Run.</summary>
    public sealed record RunGuest : VcpuEffect;

    /// <summary>Ask Run to return at the next safe point.</summary>
    public sealed record RequestPause : VcpuEffect;

    /// <summary>Have the thread end.</summary>
    public sealed record EndThread : VcpuEffect;

    /// <summary>Answer a request.</summary>
    /// <param name="To">Who asked.</param>
    /// <param name="Answer">The answer.</param>
    public sealed record Reply(IActorRef To, object Answer) : VcpuEffect;

    /// <summary>Answer with the vCPU's description.</summary>
    /// <param name="To">Who asked.</param>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record ReplyDescription(IActorRef To, long RequestId) : VcpuEffect;

    /// <summary>Tell the parent.</summary>
    /// <param name="Notice">What.</param>
    public sealed record Notify(object Notice) : VcpuEffect;

    /// <summary>Log what should not have happened.</summary>
    /// <param name="Text">What.</param>
    public sealed record Warn(string Text) : VcpuEffect;
}

/// <summary>A new state and what to do on the way to it, in order.</summary>
/// <param name="State">The new state.</param>
/// <param name="Effects">What to do.</param>
public sealed record VcpuTransition(VcpuState State, ImmutableList<VcpuEffect> Effects);
