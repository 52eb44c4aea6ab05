namespace Dmp.Kvm.Devices;

/// <summary>
/// The local APIC's timer (Intel SDM vol. 3, 11.5.4). Nothing counts: the current count follows from the clock. The timer's input
/// is 1 GHz, so that a tick before division is a nanosecond. Only on the vCPU's thread.
/// </summary>
internal sealed class ApicTimer
{
    private const ulong NanosecondsPerSecond = 1_000_000_000;
    private const uint DivideBits = 0b1011;

    private readonly IClock clock;
    private readonly DeviceTimer timer;
    private readonly Action expired;
    private Lvt mode;
    private uint divideConfiguration;
    private long start;

    public ApicTimer(IClock clock, TimerQueue timers, Action expired)
    {
        this.clock = clock;
        this.expired = expired;
        timer = timers.Add(Expire);
    }

    /// <summary>IA32_TSC_DEADLINE: a value of the guest's TSC, or 0 when disarmed.</summary>
    public ulong TscDeadline { get; private set; }

    /// <summary>The initial count.</summary>
    public uint InitialCount { get; private set; }

    /// <summary>The divide configuration. A change takes effect from now on, with the current count kept.</summary>
    public uint DivideConfiguration
    {
        get => divideConfiguration;
        set
        {
            uint left = CurrentCount;
            divideConfiguration = value & DivideBits;
            if (left != 0)
            {
                start = clock.Nanoseconds - ((long)(InitialCount - left) * Divisor);
                Arrange();
            }
        }
    }

    /// <summary>The current count: 0 when stopped, expired, or in TSC-deadline mode.</summary>
    public uint CurrentCount
    {
        get
        {
            if (InitialCount == 0)
            {
                return 0;
            }

            long ticks = (clock.Nanoseconds - start) / Divisor;
            if (mode == Lvt.TimerPeriodic)
            {
                return (uint)(InitialCount - (ticks % InitialCount));
            }

            return ticks < InitialCount ? (uint)(InitialCount - ticks) : 0;
        }
    }

    // Three bits, 0, 1 and 3 of the register: 000 divides by 2, 110 by 128, and 111 by 1.
    private long Divisor
    {
        get
        {
            uint code = (divideConfiguration & 3) | ((divideConfiguration >> 1) & 4);
            return 1L << (int)((code + 1) & 7);
        }
    }

    private long Period => InitialCount * Divisor;

    /// <summary>Follows a write to the timer's LVT entry. Entering or leaving TSC-deadline mode disarms.</summary>
    public void SetMode(Lvt newMode)
    {
        if (newMode == mode)
        {
            return;
        }

        if (((mode ^ newMode) & Lvt.TimerTscDeadline) != 0)
        {
            Stop();
        }

        mode = newMode;
        if (InitialCount != 0)
        {
            Arrange();
        }
    }

    /// <summary>Starts or (with 0) stops counting; ignored in TSC-deadline mode.</summary>
    public void SetInitialCount(uint value)
    {
        if (mode == Lvt.TimerTscDeadline)
        {
            return;
        }

        InitialCount = value;
        start = clock.Nanoseconds;
        if (value == 0)
        {
            timer.Cancel();
        }
        else
        {
            Arrange();
        }
    }

    /// <summary>Arms or (with 0) disarms; ignored outside TSC-deadline mode. A deadline that has passed expires at once.</summary>
    public void SetTscDeadline(ulong value)
    {
        if (mode != Lvt.TimerTscDeadline)
        {
            return;
        }

        TscDeadline = value;
        if (value == 0)
        {
            timer.Cancel();
            return;
        }

        ArrangeTscDeadline();
    }

    /// <summary>Stops, as INIT does.</summary>
    public void Reset()
    {
        Stop();
        mode = Lvt.None;
        divideConfiguration = 0;
    }

    private void Stop()
    {
        InitialCount = 0;
        TscDeadline = 0;
        timer.Cancel();
    }

    private void ArrangeTscDeadline()
    {
        ulong tsc = clock.Tsc;
        if (TscDeadline <= tsc)
        {
            TscDeadline = 0;
            timer.Cancel();
            expired();
            return;
        }

        // Rounded up, so that the guest never sees its timer come early.
        UInt128 frequency = clock.TscFrequency;
        UInt128 left = (((UInt128)(TscDeadline - tsc) * NanosecondsPerSecond) + frequency - 1) / frequency;
        long now = clock.Nanoseconds;
        timer.Set(left > (UInt128)(TimerQueue.Never - now) ? TimerQueue.Never : now + (long)left);
    }

    private void Arrange()
    {
        long now = clock.Nanoseconds;
        long elapsed = now - start;
        if (mode == Lvt.TimerPeriodic)
        {
            timer.Set(start + (((elapsed / Period) + 1) * Period)); // Periods that were missed are dropped.
        }
        else if (elapsed < Period)
        {
            timer.Set(start + Period);
        }
        else
        {
            timer.Cancel();
        }
    }

    private void Expire(long now)
    {
        if (mode == Lvt.TimerTscDeadline)
        {
            ArrangeTscDeadline(); // The two clocks may differ by a rounding: asks the TSC.
            return;
        }

        if (mode == Lvt.TimerPeriodic)
        {
            Arrange();
        }

        expired();
    }
}
