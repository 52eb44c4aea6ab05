namespace Dmp.Kvm.Devices;

/// <summary>Every port, window and interrupt line of the machine's devices. No other file says where a device stands.</summary>
public static class DeviceLayout
{
    /// <summary>Master 8259A: command port; the data port follows.</summary>
    public const ushort MasterPic = 0x20;

    /// <summary>Slave 8259A: command port; the data port follows.</summary>
    public const ushort SlavePic = 0xA0;

    /// <summary>Edge/level control registers of the master and, one port on, the slave.</summary>
    public const ushort EdgeLevelControl = 0x4D0;

    /// <summary>8254 timer: channels 0 to 2 and the control word, one port each.</summary>
    public const ushort Pit = 0x40;

    /// <summary>NMI status and control, with the gate and output of timer channel 2 ("system control port B").</summary>
    public const ushort SystemControlB = 0x61;

    /// <summary>8042 keyboard controller: data port.</summary>
    public const ushort KeyboardData = 0x60;

    /// <summary>8042 keyboard controller: status (read) and command (write).</summary>
    public const ushort KeyboardCommand = 0x64;

    /// <summary>Real-time clock: index port; the data port follows.</summary>
    public const ushort Rtc = 0x70;

    /// <summary>Power-on self test codes; written as a delay by everybody.</summary>
    public const ushort PostCode = 0x80;

    /// <summary>The other delay port (io_delay=0xed).</summary>
    public const ushort AlternateDelay = 0xED;

    /// <summary>First serial port (COM1), eight ports.</summary>
    public const ushort Serial = 0x3F8;

    /// <summary>ACPI PM1a event block: status and enable, two bytes each.</summary>
    public const ushort Pm1aEvent = 0x600;

    /// <summary>ACPI PM1a control block, two bytes.</summary>
    public const ushort Pm1aControl = 0x604;

    /// <summary>ACPI power-management timer, four bytes.</summary>
    public const ushort PmTimer = 0x608;

    /// <summary>PCI configuration address; the data ports are at 0xCFC..0xCFF.</summary>
    public const ushort PciConfig = 0xCF8;

    /// <summary>Reset control register, in the middle of the PCI address register but only for byte accesses.</summary>
    public const ushort ResetControl = 0xCF9;

    /// <summary>Value for <see cref="ResetControl"/> that resets the machine; the ACPI FADT names it.</summary>
    public const byte ResetValue = 0x06;

    /// <summary>Guest physical address of the I/O APIC's window.</summary>
    public const ulong IoApicBase = 0xFEC0_0000;

    /// <summary>Bytes in the I/O APIC's window.</summary>
    public const ulong IoApicSize = 0x1000;

    /// <summary>Guest physical address of the local APICs' window after reset; each vCPU sees its own.</summary>
    public const ulong LocalApicBase = 0xFEE0_0000;

    /// <summary>Bytes in the local APIC's window.</summary>
    public const ulong LocalApicSize = 0x1000;

    /// <summary>ISA interrupt of timer channel 0.</summary>
    public const int TimerIrq = 0;

    /// <summary>I/O APIC pin of <see cref="TimerIrq"/>: pin 0 belongs to the 8259A, so boards wire the timer to pin 2.</summary>
    public const int TimerPin = 2;

    /// <summary>ISA interrupt of the first serial port.</summary>
    public const int SerialIrq = 4;

    /// <summary>ISA interrupt of the ACPI system control interrupt (level, active high).</summary>
    public const int SciIrq = 9;

    /// <summary>Number of ISA interrupts.</summary>
    public const int IsaIrqs = 16;
}
