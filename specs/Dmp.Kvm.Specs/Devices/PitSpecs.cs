using Dmp.Kvm.Devices;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Devices;

public class PitSpecs
{
    private const long Second = 1_000_000_000;
    private readonly VirtualClock clock = new();
    private readonly RecordingMachine machine = new();
    private readonly List<bool> irq = [];
    private readonly TimerQueue timers;
    private readonly Pit8254 pit;

    public PitSpecs()
    {
        timers = new TimerQueue(0, machine);
        pit = new Pit8254(clock, timers, irq.Add);
    }

    [Fact(DisplayName = "A rate generator on channel 0 interrupts once a period, and drops what was missed")]
    public void Rate_generator()
    {
        Load(0, 0x34, 11932); // 100 Hz
        irq.Clear();
        int edges = 0;
        for (long now = 0; now < Second; now = timers.NextDeadline)
        {
            RunTo(now);
            edges = irq.Count(level => level);
        }

        Assert.InRange(edges, 98, 100);
        irq.Clear();
        RunTo(clock.Nanoseconds + Second);
        Assert.Equal([false, true], irq);
        Assert.True(timers.NextDeadline > clock.Nanoseconds);
    }

    [Fact(DisplayName = "Mode 0 interrupts once, at the terminal count")]
    public void Terminal_count()
    {
        Load(0, 0x30, 1193);
        Assert.DoesNotContain(true, irq);
        long deadline = timers.NextDeadline;
        Assert.InRange(deadline, 999_000, 1_000_000);
        RunTo(deadline - 1);
        Assert.DoesNotContain(true, irq);
        RunTo(deadline);
        Assert.True(irq[^1]);
        Assert.Equal(TimerQueue.Never, timers.NextDeadline);
        Assert.Equal(deadline, machine.Arranged[0]); // Spent, not taken back.
    }

    [Fact(DisplayName = "Channel 2 in mode 0 shows its output in port 0x61, as Linux's TSC calibration polls it")]
    public void Channel_2()
    {
        pit.Write(0x61, 1, 1);
        Load(2, 0xB0, 59659); // 50 ms
        Assert.Equal(0u, pit.Read(0x61, 1) & 0x20);
        clock.Nanoseconds = 49_999_000;
        Assert.Equal(0u, pit.Read(0x61, 1) & 0x20);
        clock.Nanoseconds = 50_001_000;
        Assert.Equal(0x21u, pit.Read(0x61, 1) & 0x21);
    }

    [Fact(DisplayName = "A low gate stops mode 0 where it is")]
    public void Gate()
    {
        pit.Write(0x61, 1, 1);
        Load(2, 0xB0, 1193);
        clock.Nanoseconds = 500_000;
        pit.Write(0x61, 1, 0);
        clock.Nanoseconds = 5_000_000;
        Assert.Equal(0u, pit.Read(0x61, 1) & 0x20);
        pit.Write(0x61, 1, 1);
        clock.Nanoseconds = 5_400_000;
        Assert.Equal(0u, pit.Read(0x61, 1) & 0x20);
        clock.Nanoseconds = 5_600_000;
        Assert.Equal(0x20u, pit.Read(0x61, 1) & 0x20);
    }

    [Fact(DisplayName = "Read-back latches status and count; the latch holds while time goes on")]
    public void Read_back()
    {
        Load(0, 0x34, 1000);
        clock.Nanoseconds = 100_000; // 119 ticks
        pit.Write(0x43, 1, 0xC2);
        clock.Nanoseconds = 200_000;
        Assert.Equal(0xB4u, pit.Read(0x40, 1)); // OUT, both bytes, mode 2
        Assert.Equal(1000u - 119, pit.Read(0x40, 1) | (pit.Read(0x40, 1) << 8));
        Assert.Equal(1000u - 238, pit.Read(0x40, 1) | (pit.Read(0x40, 1) << 8));
    }

    [Property(DisplayName = "In every periodic mode the next rise is later than now, and no further than a period")]
    public void Next_rise(ushort count, bool square, uint elapsed)
    {
        PitChannel channel = new(clock, gate: true);
        channel.Control(PitAccess.LowThenHigh, square ? 3 : 2, bcd: false);
        channel.Write((byte)count);
        Assert.True(channel.Write((byte)(count >> 8)));
        long start = clock.Nanoseconds;
        long period = ((count == 0 ? 65536 : count) * Second / PitChannel.Frequency) + 2;
        clock.Nanoseconds += elapsed;
        Assert.InRange(channel.NextRise(), clock.Nanoseconds + 1, clock.Nanoseconds + period);
        clock.Nanoseconds = start;
    }

    private void Load(int channel, byte control, ushort count)
    {
        pit.Write(0x43, 1, control);
        pit.Write((ushort)(0x40 + channel), 1, (byte)count);
        pit.Write((ushort)(0x40 + channel), 1, (byte)(count >> 8));
    }

    private void RunTo(long now)
    {
        clock.Nanoseconds = now;
        timers.RunDue(now);
    }
}
