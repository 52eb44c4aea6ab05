using Dmp.Kvm.Locking;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Devices;

/// <summary>
/// A 16550A UART (National Semiconductor PC16550D data sheet) on an infinitely fast line: a written character is gone at once,
/// so the transmitter is always empty; a received one sits in the FIFO as soon as there is room, so nothing from the host is ever
/// lost to an overrun, and a FIFO that stays below its trigger level has timed out at once.
/// </summary>
/// <remarks>
/// What has no effect but on itself it offers to implants (<see cref="Offer"/>): characters to transmit while no interrupt comes of
/// them, and registers that can be read without a side effect. Before anything else happens to it, it takes what implants have
/// transmitted, so the order on the line is the order of the writes.
/// </remarks>
public sealed class Uart16550 : IPortDevice, ISharedDevice
{
    /// <summary>Number of ports.</summary>
    public const int PortCount = 8;

    private readonly ushort basePort;
    private readonly IConsoleOutput output;
    private readonly IConsoleInput input;
    private readonly Action<bool> interrupt;
    private readonly ReceiveFifo fifo = new();

    private byte divisorLow = 1;
    private byte divisorHigh;
    private byte lineControl;
    private byte scratch;
    private Ier enabled;
    private Mcr modemControl;
    private Msr modemStatus = Msr.Connected;
    private bool overrun;
    private bool transmitterEmptyPending;
    private bool line;

    // Null while nothing is offered. Written under the lock; a vCPU that looks at the ring without it sees its own past at least.
    private DevicePage? offer;
    private TransmitRing? transmitted;

    /// <summary>Makes a UART.</summary>
    /// <param name="basePort">First of its eight ports.</param>
    /// <param name="output">Takes what the guest transmits.</param>
    /// <param name="input">Gives what the guest receives.</param>
    /// <param name="interrupt">Called with the level of the interrupt line when it changes, under <see cref="Gate"/>.</param>
    public Uart16550(ushort basePort, IConsoleOutput output, IConsoleInput input, Action<bool> interrupt)
    {
        this.basePort = basePort;
        this.output = output;
        this.input = input;
        this.interrupt = interrupt;
    }

    /// <inheritdoc/>
    public OrderedLock Gate { get; } = new(LockRank.Device);

    private bool DivisorLatchAccess => ((Lcr)lineControl & Lcr.DLAB) != 0;

    private bool Loop => (modemControl & Mcr.Loop) != 0;

    // The terminal at the other end honours DTR and RTS: what is typed before the guest opens the port waits instead of being
    // thrown away by the FIFO resets of the guest's driver.
    private bool TerminalMaySend => !Loop && (modemControl & (Mcr.DTR | Mcr.RTS)) != 0;

    private Lsr LineStatus => Lsr.THRE | Lsr.TEMT | (fifo.Count > 0 ? Lsr.DR : Lsr.None);

    private Iir FifoBits => fifo.Enabled ? Iir.FifosEnabled : 0;

    /// <summary>Looks for input from the host. Any thread, after input was queued.</summary>
    public void ReceiveInput()
    {
        using (Gate.Enter())
        {
            TakeTransmitted();
            Receive();
            UpdateInterrupt();
            Publish();
        }
    }

    /// <summary>Offers implants what needs no exit. Before the first vCPU runs.</summary>
    internal void Offer(DevicePage page)
    {
        using (Gate.Enter())
        {
            offer = page;
            transmitted = new TransmitRing(page);
            page[DevicePageField.RegisterBase] = basePort;
            Publish();
        }
    }

    /// <summary>Takes what implants have transmitted, and offers nothing any more: the page goes away. No vCPU runs.</summary>
    internal void EndOffer()
    {
        using (Gate.Enter())
        {
            TakeTransmitted();
            offer = null;
            transmitted = null;
        }
    }

    /// <summary>Whether implants have transmitted something that is not put out yet. Without a lock; only while the page cannot go away.</summary>
    internal bool HasTransmitted => transmitted is { HasBytes: true };

    /// <summary>Puts out what implants have transmitted. Any thread.</summary>
    internal void PutOutTransmitted()
    {
        using (Gate.Enter())
        {
            TakeTransmitted();
            UpdateInterrupt();
            Publish();
        }
    }

    /// <inheritdoc/>
    public uint Read(ushort port, int size)
    {
        TakeTransmitted();
        byte value = ReadRegister((UartRegister)(port - basePort));
        Publish();
        return value;
    }

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        TakeTransmitted();
        WriteRegister((UartRegister)(port - basePort), (byte)value);
        UpdateInterrupt();
        Publish();
    }

    private byte ReadRegister(UartRegister register) => register switch
    {
        UartRegister.RbrThrDll => DivisorLatchAccess ? divisorLow : ReadCharacter(),
        UartRegister.IerDlm => DivisorLatchAccess ? divisorHigh : (byte)enabled,
        UartRegister.IirFcr => ReadIdentification(),
        UartRegister.Lcr => lineControl,
        UartRegister.Mcr => (byte)modemControl,
        UartRegister.Lsr => ReadLineStatus(),
        UartRegister.Msr => ReadModemStatus(),
        _ => scratch,
    };

    private void WriteRegister(UartRegister register, byte data)
    {
        switch (register)
        {
            case UartRegister.RbrThrDll when DivisorLatchAccess:
                divisorLow = data;
                break;
            case UartRegister.RbrThrDll:
                Transmit(data);
                break;
            case UartRegister.IerDlm when DivisorLatchAccess:
                divisorHigh = data;
                break;
            case UartRegister.IerDlm:
                Enable((Ier)data & Ier.All);
                break;
            case UartRegister.IirFcr:
                fifo.Control(data);
                Receive();
                break;
            case UartRegister.Lcr:
                lineControl = data;
                break;
            case UartRegister.Mcr:
                ControlModem((Mcr)data & Mcr.All);
                break;
            case UartRegister.Scr:
                scratch = data;
                break;
            case UartRegister.Lsr:
            case UartRegister.Msr:
            default:
                break; // Read-only; writing is for factory tests.
        }
    }

    private byte ReadCharacter()
    {
        byte value = fifo.Take();
        Receive();
        UpdateInterrupt();
        return value;
    }

    private byte ReadIdentification()
    {
        Iir identification = Pending();
        if (identification == Iir.TransmitterEmpty)
        {
            // Reading IIR is what acknowledges this one source, and only when it is the one reported.
            transmitterEmptyPending = false;
            UpdateInterrupt();
        }

        return (byte)(identification | FifoBits);
    }

    private byte ReadLineStatus()
    {
        Lsr status = LineStatus | (overrun ? Lsr.OE : Lsr.None);
        overrun = false;
        UpdateInterrupt();
        return (byte)status;
    }

    private byte ReadModemStatus()
    {
        Msr status = modemStatus;
        modemStatus &= ~Msr.Changes;
        UpdateInterrupt();
        return (byte)status;
    }

    private void Transmit(byte value)
    {
        if (!Loop)
        {
            output.Put(value);
        }
        else if (fifo.IsFull)
        {
            overrun = true;
        }
        else
        {
            fifo.Put(value);
        }

        // Full for no time at all: the line goes down and up between two accesses, which is no change of the line.
        transmitterEmptyPending = true;
    }

    private void Enable(Ier value)
    {
        // Enabling with an empty transmitter interrupts at once; drivers start transmission with it and test for it.
        if ((value & ~enabled & Ier.ETBEI) != 0)
        {
            transmitterEmptyPending = true;
        }

        enabled = value;
    }

    private void ControlModem(Mcr value)
    {
        modemControl = value;
        Msr inputs = Loop ? LoopedBack(value) : Msr.Connected;
        Msr changed = (modemStatus ^ inputs) & ~Msr.Changes;
        Msr changes = (Msr)((byte)changed >> 4) & ~Msr.TERI;
        if ((modemStatus & ~inputs & Msr.RI) != 0)
        {
            changes |= Msr.TERI;
        }

        modemStatus = inputs | (modemStatus & Msr.Changes) | changes;
        Receive();
    }

    private static Msr LoopedBack(Mcr outputs) =>
        ((outputs & Mcr.RTS) != 0 ? Msr.CTS : Msr.None) |
        ((outputs & Mcr.DTR) != 0 ? Msr.DSR : Msr.None) |
        ((outputs & Mcr.OUT1) != 0 ? Msr.RI : Msr.None) |
        ((outputs & Mcr.OUT2) != 0 ? Msr.DCD : Msr.None);

    private void Receive()
    {
        while (TerminalMaySend && !fifo.IsFull && input.TryTake(out byte value))
        {
            fifo.Put(value);
        }
    }

    // The highest enabled source, in the data sheet's order of priority.
    private Iir Pending()
    {
        if ((enabled & Ier.ELSI) != 0 && overrun)
        {
            return Iir.LineStatus;
        }

        if ((enabled & Ier.ERBFI) != 0 && fifo.Count > 0)
        {
            return fifo.ReachedTrigger ? Iir.ReceivedData : Iir.CharacterTimeout;
        }

        if ((enabled & Ier.ETBEI) != 0 && transmitterEmptyPending)
        {
            return Iir.TransmitterEmpty;
        }

        return (enabled & Ier.EDSSI) != 0 && (modemStatus & Msr.Changes) != 0 ? Iir.ModemStatus : Iir.NoInterrupt;
    }

    private void UpdateInterrupt()
    {
        // In loop mode the OUT2 pin is inactive whatever MCR says, and with it the PC's interrupt.
        bool level = !Loop && (modemControl & Mcr.OUT2) != 0 && Pending() != Iir.NoInterrupt;
        if (level != line)
        {
            // First of all: another vCPU may take the interrupt, and read by an implant what it is about, at this very moment.
            Publish();
            line = level;
            interrupt(level);
        }
    }

    /// <summary>
    /// What implants have transmitted leaves first, whatever the state is by now: they did it when the line was free to use. A vCPU that
    /// runs at the same time can fill the ring again meanwhile; what it adds then comes after this access.
    /// </summary>
    private void TakeTransmitted()
    {
        for (int count = 0; count < DevicePage.RingEntries && transmitted is not null && transmitted.TryTake(out byte value); count++)
        {
            output.Put(value);
            transmitterEmptyPending = true;
        }
    }

    /// <summary>Says what needs no exit in the state that the UART has now.</summary>
    private void Publish()
    {
        if (offer is null)
        {
            return;
        }

        bool interrupts = (enabled & Ier.ETBEI) != 0 && !transmitterEmptyPending;
        offer[DevicePageField.TransmitPort] = DivisorLatchAccess || Loop || interrupts ? DevicePage.NoPort : basePort;
        Iir identification = Pending();
        Publish(UartRegister.IerDlm, DivisorLatchAccess ? divisorHigh : (byte)enabled);
        Publish(UartRegister.IirFcr, (byte)(identification | FifoBits), identification != Iir.TransmitterEmpty);
        Publish(UartRegister.Lcr, lineControl);
        Publish(UartRegister.Mcr, (byte)modemControl);
        Publish(UartRegister.Lsr, (byte)LineStatus, !overrun);
        Publish(UartRegister.Msr, (byte)modemStatus, (modemStatus & Msr.Changes) == 0);
        Publish(UartRegister.Scr, scratch);
    }

    private void Publish(UartRegister register, byte value, bool readable = true) =>
        offer![DevicePageField.Registers + (int)register] = readable ? value | DevicePage.RegisterReadable : 0;
}
