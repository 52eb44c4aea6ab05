namespace Dmp.Kvm.Devices;

/// <summary>
/// Registers of the local APIC (Intel SDM vol. 3, table 11-1 and 11-6). The value is the x2APIC MSR less
/// <see cref="LocalApic.FirstMsr"/>, which is also the xAPIC offset divided by sixteen.
/// </summary>
internal enum ApicRegister
{
    Id = 0x02,
    Version = 0x03,
    TaskPriority = 0x08,
    ArbitrationPriority = 0x09,
    ProcessorPriority = 0x0A,
    EndOfInterrupt = 0x0B,
    RemoteRead = 0x0C,
    LogicalDestination = 0x0D,
    DestinationFormat = 0x0E,
    SpuriousVector = 0x0F,
    InService = 0x10,
    TriggerMode = 0x18,
    InterruptRequest = 0x20,
    ErrorStatus = 0x28,
    InterruptCommand = 0x30,
    InterruptCommandHigh = 0x31,
    LvtTimer = 0x32,
    LvtThermal = 0x33,
    LvtPerformance = 0x34,
    LvtLint0 = 0x35,
    LvtLint1 = 0x36,
    LvtError = 0x37,
    InitialCount = 0x38,
    CurrentCount = 0x39,
    DivideConfiguration = 0x3E,
    SelfIpi = 0x3F,
}

/// <summary>Fields of a local vector table entry.</summary>
[Flags]
internal enum Lvt : uint
{
    None = 0,
    Vector = 0xFF,
    DeliveryMode = 7 << 8,
    Polarity = 1 << 13,
    LevelTriggered = 1 << 15,
    Masked = 1 << 16,
    TimerMode = 3 << 17,
    TimerPeriodic = 1 << 17,
    TimerTscDeadline = 2 << 17,
}

/// <summary>Fields of the interrupt command register.</summary>
[Flags]
internal enum Icr : ulong
{
    None = 0,
    Vector = 0xFF,
    LogicalDestination = 1 << 11,
    LevelAssert = 1 << 14,
    LevelTriggered = 1 << 15,
    WritableLow = 0xC_CFFF,
    XApicDestination = 0xFFUL << 56,
}

/// <summary>Error status register.</summary>
[Flags]
internal enum ApicErrors
{
    None = 0,
    SendIllegalVector = 1 << 5,
    ReceiveIllegalVector = 1 << 6,
    IllegalRegisterAddress = 1 << 7,
}

/// <summary>IA32_APIC_BASE (Intel SDM vol. 3, 11.4.4 and 11.12.1).</summary>
[Flags]
public enum ApicBase : ulong
{
    /// <summary>No bit.</summary>
    None = 0,

    /// <summary>BSP: this is the bootstrap processor.</summary>
    BootstrapProcessor = 1 << 8,

    /// <summary>EXTD: x2APIC mode.</summary>
    X2Apic = 1 << 10,

    /// <summary>EN: the local APIC is enabled.</summary>
    Enable = 1 << 11,

    /// <summary>Where the xAPIC window stands.</summary>
    Address = 0x000F_FFFF_FFFF_F000,
}
