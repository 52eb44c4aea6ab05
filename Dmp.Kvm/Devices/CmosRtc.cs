namespace Dmp.Kvm.Devices;

/// <summary>
/// The MC146818 real-time clock with its battery-backed RAM (Motorola MC146818A data sheet). It tells the host's time in UTC;
/// setting the time is accepted and ignored, and there are neither alarm nor periodic interrupts. Byte-wide.
/// </summary>
public sealed class CmosRtc : IPortDevice
{
    private const int Registers = 128;
    private const byte IndexMask = Registers - 1; // Bit 7 of the index port masks NMIs.
    private const byte FloatingBus = 0xFF;

    // The last stretch of each second during which the time must not be read.
    private const long UpdateTicks = 244 * TimeSpan.TicksPerMicrosecond;

    private const ulong Kibibyte = 1UL << 10;
    private const ulong SixtyFourKibibytes = 64 * Kibibyte;
    private const ulong Mebibyte = 1UL << 20;
    private const ulong BaseMemoryKibibytes = 640;
    private const ulong LowMemoryEnd = 0xC000_0000;

    private readonly IClock clock;
    private readonly byte[] memory = new byte[Registers];
    private byte index;

    /// <summary>Makes the clock.</summary>
    /// <param name="clock">The wall clock.</param>
    /// <param name="ramBytes">Guest RAM in bytes, which firmware would have written into the battery-backed RAM.</param>
    public CmosRtc(IClock clock, ulong ramBytes)
    {
        this.clock = clock;
        memory[(int)Register.A] = (byte)RegisterA.Divider32KiHz | (byte)RegisterA.Rate1024Hz;
        memory[(int)Register.B] = (byte)RegisterB.TwentyFourHours;
        memory[(int)Register.D] = (byte)RegisterD.ValidRamAndTime;
        DescribeMemory(ramBytes);
    }

    private enum Register
    {
        Seconds = 0x00,
        Minutes = 0x02,
        Hours = 0x04,
        DayOfWeek = 0x06,
        DayOfMonth = 0x07,
        Month = 0x08,
        Year = 0x09,
        A = 0x0A,
        B = 0x0B,
        C = 0x0C,
        D = 0x0D,
        BaseMemory = 0x15,
        ExtendedMemory = 0x17,
        ExtendedMemoryAfterTest = 0x30,
        Century = 0x32,
        MemoryAbove16MiB = 0x34,
        MemoryAbove4GiB = 0x5B,
    }

    [Flags]
    private enum RegisterA : byte
    {
        Rate1024Hz = 0x06,
        Divider32KiHz = 0x20,
        UpdateInProgress = 0x80,
    }

    [Flags]
    private enum RegisterB : byte
    {
        TwentyFourHours = 1 << 1,
        Binary = 1 << 2,
    }

    private enum RegisterD : byte
    {
        ValidRamAndTime = 0x80,
    }

    /// <inheritdoc/>
    public uint Read(ushort port, int size) => port == DeviceLayout.Rtc ? FloatingBus : ReadRegister((Register)index);

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        if (port == DeviceLayout.Rtc)
        {
            index = (byte)(value & IndexMask);
        }
        else if ((Register)index is not (Register.C or Register.D))
        {
            memory[index] = (byte)value;
        }
    }

    private byte ReadRegister(Register register)
    {
        DateTimeOffset now = clock.UtcNow;
        return register switch
        {
            Register.Seconds => Encode(now.Second),
            Register.Minutes => Encode(now.Minute),
            Register.Hours => EncodeHour(now.Hour),
            Register.DayOfWeek => Encode((int)now.DayOfWeek + 1),
            Register.DayOfMonth => Encode(now.Day),
            Register.Month => Encode(now.Month),
            Register.Year => Encode(now.Year % 100),
            Register.Century => Encode(now.Year / 100),
            Register.A => ReadA(now),
            Register.C => 0, // No interrupt source is ever active.
            _ => memory[(int)register],
        };
    }

    private byte ReadA(DateTimeOffset now)
    {
        byte value = (byte)(memory[(int)Register.A] & ~(byte)RegisterA.UpdateInProgress);
        bool updating = now.Ticks % TimeSpan.TicksPerSecond >= TimeSpan.TicksPerSecond - UpdateTicks;
        return updating ? (byte)(value | (byte)RegisterA.UpdateInProgress) : value;
    }

    private byte Encode(int value) =>
        IsSet(RegisterB.Binary) ? (byte)value : (byte)((value / 10 << 4) | (value % 10));

    private byte EncodeHour(int hour)
    {
        const byte Afternoon = 0x80;
        if (IsSet(RegisterB.TwentyFourHours))
        {
            return Encode(hour);
        }

        byte value = Encode(hour % 12 == 0 ? 12 : hour % 12);
        return hour < 12 ? value : (byte)(value | Afternoon);
    }

    private bool IsSet(RegisterB flag) => (memory[(int)Register.B] & (byte)flag) != 0;

    private void DescribeMemory(ulong ramBytes)
    {
        ulong low = Math.Min(ramBytes, LowMemoryEnd);
        ulong extended = low > Mebibyte ? (low - Mebibyte) / Kibibyte : 0;
        ulong above16MiB = low > 16 * Mebibyte ? (low - (16 * Mebibyte)) / SixtyFourKibibytes : 0;
        ulong above4GiB = ramBytes > LowMemoryEnd ? (ramBytes - LowMemoryEnd) / SixtyFourKibibytes : 0;
        Store(Register.BaseMemory, BaseMemoryKibibytes, sizeof(ushort));
        Store(Register.ExtendedMemory, Math.Min(extended, ushort.MaxValue), sizeof(ushort));
        Store(Register.ExtendedMemoryAfterTest, Math.Min(extended, ushort.MaxValue), sizeof(ushort));
        Store(Register.MemoryAbove16MiB, Math.Min(above16MiB, ushort.MaxValue), sizeof(ushort));
        Store(Register.MemoryAbove4GiB, above4GiB, 3);
    }

    private void Store(Register register, ulong value, int bytes)
    {
        for (int i = 0; i < bytes; i++)
        {
            memory[(int)register + i] = (byte)(value >> (8 * i));
        }
    }
}
