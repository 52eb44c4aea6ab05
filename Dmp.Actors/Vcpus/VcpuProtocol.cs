using Dmp.Kvm.Machine;

namespace Dmp.Actors.Vcpus;

/// <summary>
/// Messages of <see cref="VcpuActor"/>. Every request carries an id and gets exactly one answer with the same id: the one named
/// for it, or <see cref="Refused"/>.
/// </summary>
public static class VcpuProtocol
{
    /// <summary>A request.</summary>
    public interface IRequest
    {
        /// <summary>Chosen by the sender, repeated in the answer.</summary>
        long RequestId { get; }
    }

    /// <summary>Something the vCPU's own thread has to say.</summary>
    public interface IThreadEvent;

    /// <summary>
    /// Stop at the next safe point, and stay there until the sender lets go. Answered with <see cref="Paused"/> when the vCPU stands
    /// there.
    /// </summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Pause(long RequestId) : IRequest;

    /// <summary>The sender lets go: the vCPU goes on when nobody else holds it. Answered with <see cref="Resumed"/>.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Resume(long RequestId) : IRequest;

    /// <summary>Stop for good. Answered with <see cref="Stopped"/> when the thread will not touch the machine any more.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Stop(long RequestId) : IRequest;

    /// <summary>Registers and last exits, while the vCPU does not run. Answered with <see cref="Described"/>.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Describe(long RequestId) : IRequest;

    /// <summary>The vCPU stands at a safe point.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Vcpu">Index of the vCPU.</param>
    public sealed record Paused(long RequestId, int Vcpu);

    /// <summary>The sender does not hold the vCPU any more: it runs, unless somebody else holds it.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Vcpu">Index of the vCPU.</param>
    /// <param name="Runs">Whether it runs: nobody else holds it.</param>
    public sealed record Resumed(long RequestId, int Vcpu, bool Runs);

    /// <summary>The vCPU's thread has ended.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Vcpu">Index of the vCPU.</param>
    public sealed record Stopped(long RequestId, int Vcpu);

    /// <summary>The vCPU's state.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Vcpu">Index of the vCPU.</param>
    /// <param name="State">Text for people.</param>
    public sealed record Described(long RequestId, int Vcpu, string State);

    /// <summary>The request is not legal in this state.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Vcpu">Index of the vCPU.</param>
    /// <param name="Phase">State the vCPU is in.</param>
    /// <param name="Reason">Why not.</param>
    public sealed record Refused(long RequestId, int Vcpu, VcpuPhase Phase, string Reason);

    /// <summary>To the parent: the guest ended on this vCPU.</summary>
    /// <param name="Vcpu">Index of the vCPU.</param>
    /// <param name="Stop">How.</param>
    public sealed record Ended(int Vcpu, VcpuStop Stop);

    /// <summary>To the parent: the emulator failed; the vCPU stands where it was and can be described.</summary>
    /// <param name="Vcpu">Index of the vCPU.</param>
    /// <param name="Failure">What was thrown.</param>
    public sealed record Crashed(int Vcpu, Exception Failure);

    /// <summary>From the thread: it is there and waits for orders.</summary>
    public sealed record ThreadReady : IThreadEvent;

    /// <summary>From the thread: <see cref="IVcpu.Run"/> returned.</summary>
    /// <param name="Stop">What it returned.</param>
    public sealed record RunReturned(VcpuStop Stop) : IThreadEvent;

    /// <summary>From the thread: <see cref="IVcpu.Run"/> threw.</summary>
    /// <param name="Failure">What it threw.</param>
    public sealed record RunThrew(Exception Failure) : IThreadEvent;

    /// <summary>From the thread, its last word.</summary>
    public sealed record ThreadEnded : IThreadEvent;
}
