namespace Dmp.Kvm.Cpu;

/// <summary>
/// How long a vCPU was halted, and how long it then took until it ran: from what ended the halt, an interrupt or a timer's deadline, to
/// guest code. Times are nanoseconds of one clock (CLOCK_MONOTONIC). <see cref="Halt"/> and <see cref="Run"/> belong to the vCPU's thread;
/// <see cref="Wake"/> may come from any, at any time.
/// </summary>
public sealed class WakeClock
{
    private const long Never = 0;

    private long halted;
    private long haltedAt = Never;

    // When what ends this halt happened; only the first counts. Set by any thread, by compare-exchange; taken by the vCPU's.
    private long wokenAt = Never;

    /// <summary>How long halts lasted together, in nanoseconds. Any thread; a halt counts when it is over.</summary>
    public long HaltedNanoseconds => Volatile.Read(ref halted);

    /// <summary>From what ended a halt to guest code. Any thread may read it.</summary>
    public LatencyHistogram Wakes { get; } = new();

    /// <summary>The guest halted. Before the vCPU looks for the last time whether there is something for it.</summary>
    /// <param name="now">The time.</param>
    public void Halt(long now)
    {
        haltedAt = now;
        _ = Interlocked.Exchange(ref wokenAt, Never);
    }

    /// <summary>There is something that ends the vCPU's halt. Before it is kicked.</summary>
    /// <param name="at">When: for a timer, its deadline.</param>
    public void Wake(long at) => _ = Interlocked.CompareExchange(ref wokenAt, at, Never);

    /// <summary>The vCPU goes on: it enters guest code, or leaves the halt for a pause, in which nobody is late.</summary>
    /// <param name="now">The time.</param>
    public void Run(long now)
    {
        if (haltedAt == Never)
        {
            return;
        }

        Volatile.Write(ref halted, halted + (now - haltedAt));
        haltedAt = Never;
        long woken = Interlocked.Exchange(ref wokenAt, Never);
        if (woken != Never)
        {
            Wakes.Record(now - woken);
        }
    }
}
