using Dmp.Kvm.Devices;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Cpu;

/// <summary>
/// kvm-clock (Linux Documentation/virt/kvm/x86/msr.rst and arch/x86/include/asm/pvclock-abi.h): tells the guest the frequency of its
/// TSC, so that it calibrates nothing, and the time of the day. The TSC is invariant, so the page is written once.
/// </summary>
/// <param name="memory">Guest RAM.</param>
/// <param name="clock">The time.</param>
internal sealed class ParavirtualClock(GuestMemory memory, IClock clock)
{
    private const ulong Enable = 1;
    private const byte TscStable = 1;
    private const long NanosecondsPerSecond = 1_000_000_000;

    private readonly long start = clock.Nanoseconds;
    private readonly ulong startTsc = clock.Tsc;
    private readonly DateTimeOffset startWall = clock.UtcNow;

    /// <summary>A write to MSR_KVM_SYSTEM_TIME_NEW.</summary>
    /// <returns>Whether the value can be used.</returns>
    internal bool TryWriteSystemTime(ulong value)
    {
        GuestPhysicalAddress page = new(value & ~Enable);
        if ((value & Enable) == 0)
        {
            return true;
        }

        if (!memory.Contains(page, 32))
        {
            return false;
        }

        (uint multiplier, sbyte shift) = Scale(clock.TscFrequency);
        memory.Write<uint>(page, 2);
        memory.Write<uint>(page.Plus(4), 0);
        memory.Write(page.Plus(8), startTsc);
        memory.Write<ulong>(page.Plus(16), 0);
        memory.Write(page.Plus(24), multiplier);
        memory.Write(page.Plus(28), shift);
        memory.Write(page.Plus(29), TscStable);
        return true;
    }

    /// <summary>A write to MSR_KVM_WALL_CLOCK_NEW.</summary>
    /// <returns>Whether the value can be used.</returns>
    internal bool TryWriteWallClock(ulong value)
    {
        GuestPhysicalAddress page = new(value);
        if (!memory.Contains(page, 12))
        {
            return false;
        }

        long nanoseconds = (startWall - DateTimeOffset.UnixEpoch).Ticks * 100;
        memory.Write<uint>(page, 2);
        memory.Write(page.Plus(4), (uint)(nanoseconds / NanosecondsPerSecond));
        memory.Write(page.Plus(8), (uint)(nanoseconds % NanosecondsPerSecond));
        return true;
    }

    /// <summary>Nanoseconds since the machine was made, for specs of the page's contents.</summary>
    internal long Elapsed => clock.Nanoseconds - start;

    /// <summary>ns = ((tsc &lt;&lt; shift) * multiplier) &gt;&gt; 32, with the multiplier's top bit set.</summary>
    internal static (uint Multiplier, sbyte Shift) Scale(ulong frequency)
    {
        int shift = 0;
        UInt128 multiplier = ((UInt128)NanosecondsPerSecond << 32) / frequency;
        while (multiplier > uint.MaxValue)
        {
            multiplier >>= 1;
            shift++;
        }

        while (multiplier < 0x8000_0000)
        {
            shift--;
            multiplier = shift >= -31 ? ((UInt128)NanosecondsPerSecond << (32 - shift)) / frequency : uint.MaxValue;
        }

        return ((uint)multiplier, (sbyte)shift);
    }
}
