namespace Dmp.Kvm.Devices;

/// <summary>Delivery modes of an interrupt message (Intel SDM vol. 3, 11.5.1 and 11.6.1).</summary>
public enum DeliveryMode
{
    /// <summary>To every destination.</summary>
    Fixed = 0,

    /// <summary>To the destination with the lowest processor priority.</summary>
    LowestPriority = 1,

    /// <summary>System management interrupt; there is no SMM here, it is dropped.</summary>
    Smi = 2,

    /// <summary>Non-maskable interrupt.</summary>
    Nmi = 4,

    /// <summary>INIT.</summary>
    Init = 5,

    /// <summary>Start-up IPI; the vector is the page to start at.</summary>
    StartUp = 6,

    /// <summary>The vector comes from the 8259A.</summary>
    ExtInt = 7,
}

/// <summary>Destination shorthands of the interrupt command register.</summary>
public enum DestinationShorthand
{
    /// <summary>The destination field counts.</summary>
    None = 0,

    /// <summary>The sender.</summary>
    Self = 1,

    /// <summary>All, the sender too.</summary>
    AllIncludingSelf = 2,

    /// <summary>All but the sender.</summary>
    AllExcludingSelf = 3,
}

/// <summary>What travels between I/O APIC and local APICs.</summary>
/// <param name="Destination">APIC id or logical destination; <see cref="Broadcast"/> is everybody.</param>
/// <param name="Logical">Whether <paramref name="Destination"/> is a logical one.</param>
/// <param name="Mode">Delivery mode.</param>
/// <param name="Vector">Vector.</param>
/// <param name="Level">Whether it is level-triggered, so that its EOI goes back to the I/O APIC.</param>
public readonly record struct InterruptMessage(uint Destination, bool Logical, DeliveryMode Mode, byte Vector, bool Level)
{
    /// <summary>The destination that means everybody.</summary>
    public const uint Broadcast = uint.MaxValue;

    /// <summary>The 8-bit destination that means everybody.</summary>
    public const byte Broadcast8 = byte.MaxValue;

    /// <summary>Widens an 8-bit destination field (I/O APIC, xAPIC ICR).</summary>
    public static uint Widen(byte destination) => destination == Broadcast8 ? Broadcast : destination;
}
