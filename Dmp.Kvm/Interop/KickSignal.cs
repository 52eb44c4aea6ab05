using System.Runtime.InteropServices;

namespace Dmp.Kvm.Interop;

/// <summary>
/// The signal that takes one thread out of KVM_RUN or out of a halt. The signal stays blocked on the thread and is unblocked only
/// inside KVM_RUN (KVM_SET_SIGNAL_MASK), so a kick that comes just before KVM_RUN is pending and makes it return at once: there is
/// no window in which a kick is lost, and no handler ever runs. Created on the thread that is to be kicked.
/// </summary>
internal sealed unsafe class KickSignal : IDisposable
{
    private const ulong KickMask = 1UL << (Libc.SignalKick - 1);
    private const long NanosecondsPerSecond = 1_000_000_000;

    private readonly int process = Libc.GetProcessId();
    private readonly int thread = Libc.GetThreadId();
    private nint timer;
    private bool disposed;

    /// <summary>Blocks the signal on the calling thread and creates its timer.</summary>
    internal KickSignal()
    {
        ulong* set = stackalloc ulong[Libc.SignalSetWords];
        ulong* old = stackalloc ulong[Libc.SignalSetWords];
        new Span<ulong>(set, Libc.SignalSetWords).Clear();
        set[0] = KickMask;
        int error = Libc.SetThreadSignalMask(Libc.SignalMaskBlock, set, old);
        if (error != 0)
        {
            throw new KvmException("pthread_sigmask", error, "This is a defect of Dmp; please report it.");
        }

        MaskInGuest = old[0] & ~KickMask;
        Libc.SignalEvent signalEvent = new()
        {
            Signal = Libc.SignalKick,
            Notify = Libc.SignalEventThreadId,
            ThreadId = thread,
        };
        nint created;
        if (Libc.CreateTimer(Libc.ClockMonotonic, &signalEvent, &created) != 0)
        {
            throw KvmException.Last("timer_create", "Raise the limit on pending signals (ulimit -i).");
        }

        timer = created;
    }

    /// <summary>The signals to block inside KVM_RUN: those of the thread, but not the kick.</summary>
    internal ulong MaskInGuest { get; }

    /// <summary>Kicks the thread. Any thread; harmless after <see cref="Dispose"/>.</summary>
    internal void Send()
    {
        if (!Volatile.Read(ref disposed))
        {
            _ = Libc.SignalThread(process, thread, Libc.SignalKick);
        }
    }

    /// <summary>Sends the kick at a time of CLOCK_MONOTONIC, replacing the time set before. Any thread.</summary>
    /// <param name="nanoseconds">The time, or <see cref="long.MaxValue"/> for never.</param>
    internal void SendAt(long nanoseconds)
    {
        Libc.TimerSpec spec = default;
        if (nanoseconds != long.MaxValue)
        {
            // A zero value disarms; a time in the past fires at once.
            long at = Math.Max(nanoseconds, 1);
            spec.Value = new Libc.TimeSpec { Seconds = at / NanosecondsPerSecond, Nanoseconds = at % NanosecondsPerSecond };
        }

        if (!Volatile.Read(ref disposed))
        {
            _ = Libc.SetTimer(timer, Libc.TimerAbsolute, &spec, null);
        }
    }

    /// <summary>Takes pending kicks. Only on the thread itself.</summary>
    internal void Consume() => Wait(0);

    /// <summary>Waits for a kick and takes it. Only on the thread itself.</summary>
    /// <param name="nanoseconds">How long at most.</param>
    internal void Wait(long nanoseconds)
    {
        ulong* set = stackalloc ulong[Libc.SignalSetWords];
        new Span<ulong>(set, Libc.SignalSetWords).Clear();
        set[0] = KickMask;
        Libc.TimeSpec timeout = new()
        {
            Seconds = nanoseconds / NanosecondsPerSecond,
            Nanoseconds = nanoseconds % NanosecondsPerSecond,
        };

        // EAGAIN is the time-out, EINTR another signal: in both cases the caller looks again at what it waits for.
        _ = Libc.WaitForSignal(set, null, &timeout);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (!disposed)
        {
            Volatile.Write(ref disposed, true);
            _ = Libc.DeleteTimer(timer);
            timer = 0;
        }
    }
}
