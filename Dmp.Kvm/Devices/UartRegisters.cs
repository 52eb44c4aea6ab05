namespace Dmp.Kvm.Devices;

/// <summary>Register offsets of the 16550A (National Semiconductor PC16550D data sheet, 8.0).</summary>
internal enum UartRegister
{
    /// <summary>Receiver buffer (read), transmitter holding (write), divisor latch low (DLAB).</summary>
    RbrThrDll = 0,

    /// <summary>Interrupt enable, divisor latch high (DLAB).</summary>
    IerDlm = 1,

    /// <summary>Interrupt identification (read), FIFO control (write).</summary>
    IirFcr = 2,

    /// <summary>Line control.</summary>
    Lcr = 3,

    /// <summary>Modem control.</summary>
    Mcr = 4,

    /// <summary>Line status.</summary>
    Lsr = 5,

    /// <summary>Modem status.</summary>
    Msr = 6,

    /// <summary>Scratch.</summary>
    Scr = 7,
}

/// <summary>Interrupt enable register.</summary>
[Flags]
internal enum Ier : byte
{
    None = 0,

    /// <summary>Received data available, and character timeout.</summary>
    ERBFI = 1 << 0,

    /// <summary>Transmitter holding register empty.</summary>
    ETBEI = 1 << 1,

    /// <summary>Receiver line status.</summary>
    ELSI = 1 << 2,

    /// <summary>Modem status.</summary>
    EDSSI = 1 << 3,

    All = ERBFI | ETBEI | ELSI | EDSSI,
}

/// <summary>Interrupt identification register.</summary>
[Flags]
internal enum Iir : byte
{
    ModemStatus = 0b0000,
    NoInterrupt = 0b0001,
    TransmitterEmpty = 0b0010,
    ReceivedData = 0b0100,
    LineStatus = 0b0110,
    CharacterTimeout = 0b1100,
    FifosEnabled = 0b1100_0000,
}

/// <summary>FIFO control register.</summary>
[Flags]
internal enum Fcr : byte
{
    None = 0,
    Enable = 1 << 0,
    ReceiverReset = 1 << 1,
    TransmitterReset = 1 << 2,
}

/// <summary>Line control register.</summary>
[Flags]
internal enum Lcr : byte
{
    None = 0,

    /// <summary>Divisor latch access.</summary>
    DLAB = 1 << 7,
}

/// <summary>Modem control register.</summary>
[Flags]
internal enum Mcr : byte
{
    None = 0,
    DTR = 1 << 0,
    RTS = 1 << 1,
    OUT1 = 1 << 2,

    /// <summary>On a PC this output lets the interrupt through to the bus.</summary>
    OUT2 = 1 << 3,
    Loop = 1 << 4,
    All = DTR | RTS | OUT1 | OUT2 | Loop,
}

/// <summary>Line status register.</summary>
[Flags]
internal enum Lsr : byte
{
    None = 0,

    /// <summary>Data ready.</summary>
    DR = 1 << 0,

    /// <summary>Overrun error.</summary>
    OE = 1 << 1,

    /// <summary>Transmitter holding register empty.</summary>
    THRE = 1 << 5,

    /// <summary>Transmitter empty.</summary>
    TEMT = 1 << 6,
}

/// <summary>Modem status register.</summary>
[Flags]
internal enum Msr : byte
{
    None = 0,

    /// <summary>Trailing edge of the ring indicator; the other three changes report both edges.</summary>
    TERI = 1 << 2,

    /// <summary>The four change bits; cleared by reading.</summary>
    Changes = 0x0F,
    CTS = 1 << 4,
    DSR = 1 << 5,
    RI = 1 << 6,
    DCD = 1 << 7,

    /// <summary>A terminal that is always there and always ready.</summary>
    Connected = CTS | DSR | DCD,
}
