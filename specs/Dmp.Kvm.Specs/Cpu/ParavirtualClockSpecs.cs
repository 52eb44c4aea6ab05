using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Specs.Devices;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Cpu;

public sealed class ParavirtualClockSpecs : IDisposable
{
    private readonly GuestMemory memory = GuestMemory.Create(2UL << 20);
    private readonly VirtualClock clock = new() { Nanoseconds = 1_000 };

    public void Dispose() => memory.Dispose();

    [Property(DisplayName = "For any frequency from 1 MHz to 10 GHz the scale is right to a billionth")]
    public void Scale(ulong random)
    {
        ulong frequency = 1_000_000 + (random % 9_999_000_000);
        (uint multiplier, sbyte shift) = ParavirtualClock.Scale(frequency);
        Assert.True(multiplier >= 0x8000_0000);
        double nanosecondsPerTick = multiplier / 4294967296.0 * Math.Pow(2, shift);
        Assert.InRange(nanosecondsPerTick * frequency / 1e9, 1 - 1e-9, 1 + 1e-9);
    }

    [Fact(DisplayName = "The time page holds the TSC of the start, time 0, the scale and the stable flag")]
    public void System_time()
    {
        ParavirtualClock subject = new(memory, clock);
        Assert.True(subject.TryWriteSystemTime(0x4001));
        Assert.Equal(2u, memory.Read<uint>(new(0x4000)));
        Assert.Equal(2_000UL, memory.Read<ulong>(new(0x4008)));
        Assert.Equal(0UL, memory.Read<ulong>(new(0x4010)));
        Assert.Equal(ParavirtualClock.Scale(2_000_000_000), (memory.Read<uint>(new(0x4018)), memory.Read<sbyte>(new(0x401C))));
        Assert.Equal(1, memory.Read<byte>(new(0x401D)));
    }

    [Fact(DisplayName = "All vCPUs count from the same moment, whenever they switch their clocks on, so that a stable TSC is one time for all")]
    public void Same_for_all()
    {
        ParavirtualClock subject = new(memory, clock);
        Assert.True(subject.TryWriteSystemTime(0x4001));
        clock.Nanoseconds += 5_000_000;
        Assert.True(subject.TryWriteSystemTime(0x4041));
        Assert.True(memory.Slice(new(0x4000), 32).SequenceEqual(memory.Slice(new(0x4040), 32)));
    }

    [Fact(DisplayName = "The wall clock is that of the start")]
    public void Wall_clock()
    {
        Assert.True(new ParavirtualClock(memory, clock).TryWriteWallClock(0x4000));
        Assert.Equal(clock.UtcNow.ToUnixTimeSeconds(), memory.Read<uint>(new(0x4004)));
    }

    [Fact(DisplayName = "A page outside RAM is refused, a disabled one is not looked at")]
    public void Outside()
    {
        ParavirtualClock subject = new(memory, clock);
        Assert.False(subject.TryWriteSystemTime(0x20_0001));
        Assert.False(subject.TryWriteWallClock(0x1F_FFF8));
        Assert.True(subject.TryWriteSystemTime(0x20_0000));
    }
}
