using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>
/// Every address the loader chooses or tells the guest about. What lies below <see cref="ConventionalEnd"/> is only needed
/// until the guest has its own copy: Linux saves boot_params and the command line, and builds its own GDT and page tables,
/// before it allocates memory.
/// </summary>
public static class BootLayout
{
    /// <summary>The GDT that the 64-bit boot protocol asks for.</summary>
    public static readonly GuestPhysicalAddress Gdt = new(0x6000);

    /// <summary>boot_params, the "zero page" (one page).</summary>
    public static readonly GuestPhysicalAddress BootParameters = new(0x7000);

    /// <summary>First stack pointer; the stack has the page below.</summary>
    public static readonly GuestPhysicalAddress StackTop = new(0x9000);

    /// <summary>Identity page tables: a PML4, a page-directory-pointer table, four page directories, one page each.</summary>
    public static readonly GuestPhysicalAddress PageTables = new(0x9000);

    /// <summary>The command line, with its terminating zero.</summary>
    public static readonly GuestPhysicalAddress CommandLine = new(0x20000);

    /// <summary>Bytes set aside at <see cref="CommandLine"/>.</summary>
    public const int CommandLineCapacity = 0x10000;

    /// <summary>End of conventional memory; a PC has its extended BIOS data area from here on.</summary>
    public static readonly GuestPhysicalAddress ConventionalEnd = new(0x9FC00);

    /// <summary>The ACPI tables, RSDP first: where a guest that is not told looks for it too (ACPI 6.4, 5.2.5.1).</summary>
    public static readonly GuestPhysicalAddress AcpiTables = new(0xE0000);

    /// <summary>End of the BIOS area, and where RAM goes on: 1 MiB.</summary>
    public static readonly GuestPhysicalAddress HighMemory = new(0x100000);

    /// <summary>Bytes set aside at <see cref="AcpiTables"/>.</summary>
    public static readonly int AcpiCapacity = (int)(HighMemory.Value - AcpiTables.Value);

    /// <summary>How much the identity page tables map, from 0: 4 GiB.</summary>
    public const ulong IdentityMapped = 4UL << 30;

    /// <summary>Registers of the I/O APIC.</summary>
    public static readonly GuestPhysicalAddress IoApic = new(0xFEC00000);

    /// <summary>Registers of every local APIC.</summary>
    public static readonly GuestPhysicalAddress LocalApic = new(0xFEE00000);

    /// <summary>ACPI PM1a event block: status and enable, two bytes each.</summary>
    public const ushort Pm1EventPort = 0x600;

    /// <summary>ACPI PM1a control, two bytes: SLP_TYP and SLP_EN.</summary>
    public const ushort Pm1ControlPort = 0x604;

    /// <summary>ACPI power-management timer, four bytes.</summary>
    public const ushort PmTimerPort = 0x608;

    /// <summary>Reset control register of a PC's south bridge.</summary>
    public const ushort ResetPort = 0xCF9;

    /// <summary>First port of the serial port COM1; it has <see cref="SerialPortCount"/>.</summary>
    public const ushort SerialPort = 0x3F8;

    /// <summary>Ports of a 16550 UART.</summary>
    public const byte SerialPortCount = 8;

    /// <summary>Interrupt of COM1.</summary>
    public const byte SerialIrq = 4;

    /// <summary>First port of the real-time clock; it has <see cref="RtcPortCount"/>.</summary>
    public const ushort RtcPort = 0x70;

    /// <summary>Ports of the real-time clock: index and data.</summary>
    public const byte RtcPortCount = 2;

    /// <summary>Interrupt of the real-time clock.</summary>
    public const byte RtcIrq = 8;

    /// <summary>System control interrupt: ACPI events.</summary>
    public const byte SciIrq = 9;

    /// <summary>Selector of the flat 64-bit code segment at entry.</summary>
    public const ushort CodeSelector = 0x10;

    /// <summary>Selector of the flat data segment at entry.</summary>
    public const ushort DataSelector = 0x18;
}
