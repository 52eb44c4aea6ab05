using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Machine;

/// <summary>
/// How a vCPU learns that there is something new: the signal of the thread that runs it, the gate that saves most signals, the request to
/// pause, and the clock of what its halts take. Any thread rings; everything else belongs to the vCPU's thread.
/// </summary>
/// <param name="clock">The time.</param>
internal sealed class VcpuDoorbell(IClock clock)
{
    private const long LongestWaitNanoseconds = 1_000_000_000;

    // Open from before the vCPU looks for what is new until it is back from guest code or awake.
    private readonly KickGate gate = new();

    // Thread-safe by nature (signals); replaced only between two runs, and published with Volatile.
    private KickSignal? signal;

    // Set by any thread before it rings; cleared by the vCPU's thread when it pauses.
    private int pauseRequested;

    /// <summary>What halts take, and the ways out of them.</summary>
    internal WakeClock Wakes { get; } = new();

    /// <summary>There is something for the guest (or the machine ends): takes the vCPU out of guest code or a halt. Any thread.</summary>
    internal void Kick()
    {
        if (gate.NeedsSignal())
        {
            Wakes.Wake(clock.Nanoseconds);
            Volatile.Read(ref signal)?.Send();
        }
    }

    /// <summary>Whether a pause was requested that was not taken yet. Any thread.</summary>
    internal bool PauseIsRequested => Volatile.Read(ref pauseRequested) != 0;

    /// <summary>Asks the vCPU to pause: it is not the guest's business, and wakes it for nothing. Any thread.</summary>
    internal void RequestPause()
    {
        // The interlocked write orders the flag before the signal: a vCPU that takes the kick sees the request.
        _ = Interlocked.Exchange(ref pauseRequested, 1);
        if (gate.NeedsSignal())
        {
            Volatile.Read(ref signal)?.Send();
        }
    }

    /// <summary>Takes the request to pause.</summary>
    /// <returns>Whether there was one.</returns>
    internal bool TakePause() => Interlocked.Exchange(ref pauseRequested, 0) != 0;

    /// <summary>As <see cref="Kick"/>, at a time that replaces the one set before. Any thread.</summary>
    internal void KickAt(long nanoseconds) => Volatile.Read(ref signal)?.SendAt(nanoseconds);

    /// <summary>The calling thread runs the vCPU from now on.</summary>
    internal void Begin(KickSignal own) => Volatile.Write(ref signal, own);

    /// <summary>Nobody runs the vCPU any more.</summary>
    internal void End()
    {
        gate.Close();
        Volatile.Write(ref signal, null);
    }

    /// <summary>The vCPU is about to look for what is new: from here on nothing is missed.</summary>
    internal void BeforeLook() => gate.Open();

    /// <summary>The vCPU is out of guest code.</summary>
    internal void AfterExit() => gate.Close();

    /// <summary>Takes kicks that have come.</summary>
    internal void Consume() => signal?.Consume();

    /// <summary>Rings again for what a kick was for that came at a moment when nobody could look.</summary>
    internal void RingAgain() => signal?.Send();

    /// <summary>Sleeps until a kick, or for a while.</summary>
    /// <param name="deadline">When a timer of the vCPU's is due.</param>
    internal void Wait(long deadline)
    {
        signal!.Wait(LongestWaitNanoseconds);
        gate.Close();
        if (clock.Nanoseconds >= deadline)
        {
            Wakes.Wake(deadline);
        }
    }
}
