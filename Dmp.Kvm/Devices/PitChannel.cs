namespace Dmp.Kvm.Devices;

/// <summary>Counting modes of the 8254 (Intel 8254 data sheet).</summary>
internal enum PitMode
{
    InterruptOnTerminalCount = 0,
    HardwareOneShot = 1,
    RateGenerator = 2,
    SquareWave = 3,
    SoftwareStrobe = 4,
    HardwareStrobe = 5,
}

/// <summary>Which bytes of the count the guest reads and writes.</summary>
internal enum PitAccess
{
    Latch = 0,
    LowByte = 1,
    HighByte = 2,
    LowThenHigh = 3,
}

/// <summary>
/// One counter of the 8254. Nothing counts: every value follows from the clock and the time when counting began. Under the 8254's
/// lock. A new count takes effect at once, in the periodic modes too.
/// </summary>
internal sealed class PitChannel
{
    /// <summary>Ticks per second of the PC's timer input: 14.31818 MHz / 12.</summary>
    public const long Frequency = 1_193_182;

    private const long NanosecondsPerSecond = 1_000_000_000;
    private const int FullCount = 1 << 16;
    private const int FullBcdCount = 10_000;
    private const int OutputShift = 7;
    private const int NullCountShift = 6;
    private const int AccessShift = 4;
    private const int ModeShift = 1;
    private const int BitsPerByte = 8;

    private readonly IClock clock;
    private PitMode mode = PitMode.SquareWave;
    private PitAccess access = PitAccess.LowThenHigh;
    private bool binaryCoded;
    private bool loaded;
    private bool triggered;
    private bool gate;
    private int count = FullCount;
    private long start;
    private long? stoppedAfter;
    private byte lowByte;
    private bool writesHigh;
    private bool readsHigh;
    private int? latchedCount;
    private byte? latchedStatus;

    /// <param name="clock">The time.</param>
    /// <param name="gate">The level of the gate input at the start.</param>
    public PitChannel(IClock clock, bool gate)
    {
        this.clock = clock;
        this.gate = gate;
    }

    /// <summary>The gate input.</summary>
    public bool Gate
    {
        get => gate;
        set
        {
            if (value && !gate)
            {
                OpenGate();
            }
            else if (!value && gate && IsCounting)
            {
                stoppedAfter = Ticks;
            }

            gate = value;
        }
    }

    /// <summary>The OUT pin now.</summary>
    public bool Output
    {
        get
        {
            if (!IsCounting)
            {
                return mode != PitMode.InterruptOnTerminalCount;
            }

            long ticks = Ticks;
            return mode switch
            {
                PitMode.InterruptOnTerminalCount or PitMode.HardwareOneShot => ticks >= count,
                PitMode.RateGenerator => !gate || ticks % count != count - 1,
                PitMode.SquareWave => !gate || ticks % count < (count + 1) / 2,
                _ => ticks != count,
            };
        }
    }

    // The hardware-triggered modes wait for a rising gate.
    private bool IsCounting => loaded && (triggered || mode is not (PitMode.HardwareOneShot or PitMode.HardwareStrobe));

    private long Ticks => stoppedAfter ?? ToTicks(clock.Nanoseconds - start);

    /// <summary>When OUT rises next, in nanoseconds of the clock, or <see cref="TimerQueue.Never"/>.</summary>
    public long NextRise()
    {
        if (!IsCounting || stoppedAfter is not null)
        {
            return TimerQueue.Never;
        }

        long ticks = Ticks;
        return mode switch
        {
            PitMode.RateGenerator or PitMode.SquareWave => At(((ticks / count) + 1) * count),
            PitMode.InterruptOnTerminalCount or PitMode.HardwareOneShot => ticks < count ? At(count) : TimerQueue.Never,
            _ => ticks <= count ? At(count + 1) : TimerQueue.Never,
        };
    }

    /// <summary>Applies a control word.</summary>
    public void Control(PitAccess newAccess, int modeBits, bool bcd)
    {
        access = newAccess;
        mode = (PitMode)(modeBits > (int)PitMode.HardwareStrobe ? modeBits & 3 : modeBits); // 6 and 7 are 2 and 3.
        binaryCoded = bcd;
        loaded = false;
        triggered = false;
        stoppedAfter = null;
        writesHigh = false;
        readsHigh = false;
        latchedCount = null;
        latchedStatus = null;
    }

    /// <summary>Holds the count for the next reads; a second latch before them is ignored.</summary>
    public void LatchCount() => latchedCount ??= CurrentCount();

    /// <summary>Holds the status for the next read.</summary>
    public void LatchStatus() => latchedStatus ??= (byte)(
        ((Output ? 1 : 0) << OutputShift) | ((loaded ? 0 : 1) << NullCountShift) |
        ((int)access << AccessShift) | ((int)mode << ModeShift) | (binaryCoded ? 1 : 0));

    /// <summary>Reads the counter's port.</summary>
    public byte Read()
    {
        if (latchedStatus is { } status)
        {
            latchedStatus = null;
            return status;
        }

        int value = latchedCount ?? CurrentCount();
        bool high = access == PitAccess.HighByte || (access == PitAccess.LowThenHigh && readsHigh);
        if (access == PitAccess.LowThenHigh)
        {
            readsHigh = !readsHigh;
        }

        if (high || access != PitAccess.LowThenHigh)
        {
            latchedCount = null;
        }

        return (byte)(high ? value >> BitsPerByte : value);
    }

    /// <summary>Writes the counter's port.</summary>
    /// <returns>Whether the count is complete, so that counting began anew.</returns>
    public bool Write(byte value)
    {
        switch (access)
        {
            case PitAccess.LowByte:
                Load(value);
                return true;
            case PitAccess.HighByte:
                Load(value << BitsPerByte);
                return true;
            case PitAccess.LowThenHigh when writesHigh:
                writesHigh = false;
                Load((value << BitsPerByte) | lowByte);
                return true;
            case PitAccess.LowThenHigh:
                lowByte = value;
                writesHigh = true;
                if (mode == PitMode.InterruptOnTerminalCount)
                {
                    loaded = false; // The first byte stops this mode's counting and takes OUT low.
                }

                return false;
            case PitAccess.Latch:
            default:
                return false;
        }
    }

    private static long ToTicks(long nanoseconds) => (long)((Int128)nanoseconds * Frequency / NanosecondsPerSecond);

    // Rounded up, so that at that time the ticks have passed.
    private long At(long ticks) => start + ToNanoseconds(ticks);

    private static long ToNanoseconds(long ticks) =>
        (long)((((Int128)ticks * NanosecondsPerSecond) + Frequency - 1) / Frequency);

    private void Load(int value)
    {
        int binary = binaryCoded ? FromBcd(value) : value;
        count = binary != 0 ? binary : binaryCoded ? FullBcdCount : FullCount;
        loaded = true;
        start = clock.Nanoseconds;
        stoppedAfter = gate ? null : 0;
    }

    private void OpenGate()
    {
        if (!loaded)
        {
            return;
        }

        if (mode is PitMode.InterruptOnTerminalCount or PitMode.SoftwareStrobe)
        {
            start = clock.Nanoseconds - ToNanoseconds(stoppedAfter ?? 0); // Goes on where it stopped.
        }
        else
        {
            start = clock.Nanoseconds;
            triggered = true;
        }

        stoppedAfter = null;
    }

    private int CurrentCount()
    {
        if (!IsCounting)
        {
            return Encode(count);
        }

        long ticks = Ticks;
        long value = mode switch
        {
            PitMode.RateGenerator => count - (ticks % count),
            PitMode.SquareWave => count - (2 * ticks % count), // Counts by two, once for each half of the wave.
            _ => count - ticks,
        };
        return Encode(value);
    }

    // Counters run on below zero.
    private int Encode(long value)
    {
        int modulus = binaryCoded ? FullBcdCount : FullCount;
        int wrapped = (int)(((value % modulus) + modulus) % modulus);
        return binaryCoded ? ToBcd(wrapped) : wrapped;
    }

    private static int FromBcd(int value) =>
        (((value >> 12) & 0xF) * 1000) + (((value >> 8) & 0xF) * 100) + (((value >> 4) & 0xF) * 10) + (value & 0xF);

    private static int ToBcd(int value) =>
        (value / 1000 << 12) | (value / 100 % 10 << 8) | (value / 10 % 10 << 4) | (value % 10);
}
