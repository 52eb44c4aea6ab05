using Dmp.Kvm.Locking;

namespace Dmp.Kvm.Devices;

/// <summary>
/// The I/O APIC (Intel 82093AA data sheet) with the EOI register of its successors. Lines are asserted or not; the polarity bits are
/// kept for the guest but change nothing, since no line here is a voltage.
/// </summary>
public sealed class IoApic : IMmioDevice, ISharedDevice
{
    /// <summary>Number of input pins, and of the global system interrupts they serve (from 0).</summary>
    public const int Pins = 24;

    private const uint Version = 0x20 | ((Pins - 1) << 16);
    private const int IdShift = 24;
    private const uint IdMask = 0x0F;

    private readonly ApicInterconnect interconnect;
    private readonly RedirectionEntry[] entries = new RedirectionEntry[Pins];
    private uint lines;
    private byte selected;
    private uint id;

    /// <summary>Makes the I/O APIC.</summary>
    /// <param name="interconnect">Delivers its messages and brings back the EOIs.</param>
    public IoApic(ApicInterconnect interconnect)
    {
        ArgumentNullException.ThrowIfNull(interconnect);
        this.interconnect = interconnect;
        interconnect.LevelEndOfInterrupt = EndOfInterrupt;
        Array.Fill(entries, RedirectionEntry.Reset);
    }

    // What stands in the window.
    private enum Window : ulong
    {
        RegisterSelect = 0x00,
        Data = 0x10,
        EndOfInterrupt = 0x40,
    }

    // What IOREGSEL selects; two words for each redirection entry.
    private enum Register
    {
        Id = 0x00,
        Version = 0x01,
        Arbitration = 0x02,
        RedirectionTable = 0x10,
    }

    /// <inheritdoc/>
    public OrderedLock Gate { get; } = new(LockRank.IoApic);

    /// <summary>Drives an input pin. Any thread.</summary>
    /// <param name="pin">0 to 23.</param>
    /// <param name="level">Whether the device asserts it.</param>
    public void SetPin(int pin, bool level)
    {
        uint bit = 1u << pin;
        using (Gate.Enter())
        {
            bool rises = level && (lines & bit) == 0;
            lines = level ? lines | bit : lines & ~bit;
            if (!rises)
            {
                return;
            }

            if (entries[pin].IsLevelTriggered)
            {
                DeliverLevel(pin);
            }
            else if (!entries[pin].IsMasked)
            {
                interconnect.Deliver(entries[pin].Message); // An edge on a masked pin is lost.
            }
        }
    }

    /// <summary>Ends a level-triggered interrupt; it comes again where the line is still asserted. Any thread.</summary>
    public void EndOfInterrupt(byte vector)
    {
        using (Gate.Enter())
        {
            for (int pin = 0; pin < Pins; pin++)
            {
                if (entries[pin].Vector == vector && entries[pin].RemoteIrr)
                {
                    entries[pin] = entries[pin].WithRemoteIrr(false);
                    DeliverLevel(pin);
                }
            }
        }
    }

    /// <inheritdoc/>
    public ulong Read(ulong offset, int size) => (Window)offset switch
    {
        Window.RegisterSelect => selected,
        Window.Data => ReadRegister((Register)selected),
        _ => 0,
    };

    /// <inheritdoc/>
    public void Write(ulong offset, int size, ulong value)
    {
        switch ((Window)offset)
        {
            case Window.RegisterSelect:
                selected = (byte)value;
                break;
            case Window.Data:
                WriteRegister((Register)selected, (uint)value);
                break;
            case Window.EndOfInterrupt:
                EndOfInterrupt((byte)value);
                break;
            default:
                break;
        }
    }

    private static bool IsEntry(Register register, out int pin, out bool high)
    {
        int word = register - Register.RedirectionTable;
        pin = word / 2;
        high = word % 2 != 0;
        return word >= 0 && pin < Pins;
    }

    private uint ReadRegister(Register register)
    {
        if (IsEntry(register, out int pin, out bool high))
        {
            return (uint)(high ? entries[pin].Bits >> 32 : entries[pin].Bits);
        }

        return register switch
        {
            Register.Id or Register.Arbitration => id << IdShift,
            Register.Version => Version,
            _ => uint.MaxValue,
        };
    }

    private void WriteRegister(Register register, uint value)
    {
        if (IsEntry(register, out int pin, out bool high))
        {
            ulong bits = entries[pin].Bits;
            entries[pin] = entries[pin].Written(
                high ? (uint)bits | ((ulong)value << 32) : (bits & ~(ulong)uint.MaxValue) | value);
            DeliverLevel(pin);
        }
        else if (register == Register.Id)
        {
            id = (value >> IdShift) & IdMask;
        }
    }

    private void DeliverLevel(int pin)
    {
        RedirectionEntry entry = entries[pin];
        bool asserted = (lines & (1u << pin)) != 0;
        if (asserted && entry.IsLevelTriggered && !entry.IsMasked && !entry.RemoteIrr)
        {
            entries[pin] = entry.WithRemoteIrr(interconnect.Deliver(entry.Message));
        }
    }
}
