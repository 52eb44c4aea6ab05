namespace Dmp.Kvm.Machine;

/// <summary>
/// Decides whether a kick needs a signal: only when the vCPU may have looked already, that is in guest code, in a halt, or on the way
/// there. While it handles an exit it will look by itself, and a kick costs one interlocked operation. Of many kicks for the same look
/// one sends the signal.
/// <para>
/// The vCPU opens the gate, looks for what is new, enters guest code or waits, and closes the gate. A kicker makes something new (a bit
/// in IRR, a request to pause), and asks the gate. Both <see cref="Open"/> and <see cref="NeedsSignal"/> are interlocked operations, full
/// barriers between the write before them and the reads after them. So of the two one comes first, for everybody: if it is the kicker's,
/// the vCPU opens the gate later and sees what is new; if it is the vCPU's, the kicker finds the gate open and signals. The signal stays
/// pending until guest code or the wait lets it in (<see cref="Interop.KickSignal"/>).
/// </para>
/// <para>
/// A signal may come late, for a look that found everything already: it costs one exit. Deadlines need no gate: their signal comes from
/// the host's timer, whatever the vCPU does.
/// </para>
/// </summary>
internal sealed class KickGate
{
    private int state;

    private enum State
    {
        // The vCPU handles an exit, or does not run: it looks before it enters.
        Closed,

        // It looks, runs guest code or waits, and nobody has kicked it yet.
        Open,

        // The same, and a signal is on its way or has come.
        Signaled,
    }

    /// <summary>From here on kicks send a signal. The vCPU's thread, before it looks for anything.</summary>
    internal void Open() => Interlocked.Exchange(ref state, (int)State.Open);

    /// <summary>The vCPU is out of guest code or awake. The vCPU's thread.</summary>
    internal void Close() => Volatile.Write(ref state, (int)State.Closed);

    /// <summary>Whether the caller has to send the signal for what it has made known before. Any thread.</summary>
    internal bool NeedsSignal() =>
        Interlocked.CompareExchange(ref state, (int)State.Signaled, (int)State.Open) == (int)State.Open;
}
