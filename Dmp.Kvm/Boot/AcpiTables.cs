using System.Buffers.Binary;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>
/// The ACPI tables of the machine: its CPUs and interrupt controllers, how to switch it off, its serial port and its clock.
/// (ACPI 6.4, chapter 5; offsets in comments are those of its tables.)
/// </summary>
public static class AcpiTables
{
    /// <summary>SLP_TYP of the soft-off state S5: what the guest writes to PM1a control, with SLP_EN, to switch off.</summary>
    public const byte SoftOffSleepType = 5;

    /// <summary>What the guest writes to the reset register: a full, hard reset.</summary>
    public const byte ResetValue = 6;

    private const int TableHeaderSize = 36;
    private const int ChecksumOffset = 9;
    private const int RsdpSize = 36;
    private const int RsdpFirstPart = 20;
    private const int FacsSize = 64;

    /// <summary>A FACS lies on a multiple of 64; the others do no harm there.</summary>
    private const ulong TableAlignment = 64;

    /// <summary>Writes the tables to <see cref="BootLayout.AcpiTables"/>.</summary>
    /// <param name="ram">Guest RAM.</param>
    /// <param name="cpus">Number of vCPUs; APIC ids are 0, 1, 2 ...</param>
    /// <returns>Where the root pointer (RSDP) lies.</returns>
    /// <exception cref="BootException">There are more vCPUs than these tables can name.</exception>
    public static GuestPhysicalAddress Write(IGuestRam ram, int cpus)
    {
        ArgumentNullException.ThrowIfNull(ram);
        if (cpus is < 1 or >= AllProcessors)
        {
            throw new BootException($"{cpus} vCPUs cannot be described to the guest; use --cpus 1 to {AllProcessors - 1}");
        }

        GuestPhysicalAddress rsdp = BootLayout.AcpiTables;
        GuestPhysicalAddress next = Aligned(rsdp.Plus(RsdpSize));
        GuestPhysicalAddress dsdt = Place(ram, Dsdt(), ref next);
        GuestPhysicalAddress facs = Place(ram, Facs(), ref next);
        GuestPhysicalAddress fadt = Place(ram, Fadt(facs, dsdt), ref next);
        GuestPhysicalAddress madt = Place(ram, Madt(cpus), ref next);
        GuestPhysicalAddress xsdt = Place(ram, Xsdt(fadt, madt), ref next);
        Rsdp(xsdt).CopyTo(ram.Slice(rsdp, RsdpSize));
        return rsdp;
    }

    private static GuestPhysicalAddress Place(IGuestRam ram, byte[] table, ref GuestPhysicalAddress next)
    {
        GuestPhysicalAddress at = next;
        table.CopyTo(ram.Slice(at, table.Length));
        next = Aligned(at.Plus((ulong)table.Length));
        return at;
    }

    private static GuestPhysicalAddress Aligned(GuestPhysicalAddress address) =>
        new((address.Value + TableAlignment - 1) & ~(TableAlignment - 1));

    /// <summary>5.2.5.3, revision 2.</summary>
    private static byte[] Rsdp(GuestPhysicalAddress xsdt)
    {
        byte[] table = new byte[RsdpSize];
        "RSD PTR "u8.CopyTo(table);
        OemId.CopyTo(table.AsSpan(9));
        table[15] = 2;
        Put(table, 20, (uint)RsdpSize);
        Put(table, 24, xsdt.Value);
        table[8] = Checksum(table.AsSpan(0, RsdpFirstPart));
        table[32] = Checksum(table);
        return table;
    }

    /// <summary>5.2.8.</summary>
    private static byte[] Xsdt(params GuestPhysicalAddress[] tables)
    {
        byte[] body = new byte[tables.Length * sizeof(ulong)];
        for (int i = 0; i < tables.Length; i++)
        {
            Put(body, i * sizeof(ulong), tables[i].Value);
        }

        return Table("XSDT"u8, revision: 1, body);
    }

    /// <summary>5.2.10. It has neither the common header nor a checksum.</summary>
    private static byte[] Facs()
    {
        byte[] table = new byte[FacsSize];
        "FACS"u8.CopyTo(table);
        Put(table, 4, (uint)FacsSize);
        table[32] = 2;
        return table;
    }

    /// <summary>
    /// 5.2.9, revision 6. The machine is in ACPI mode from the start (SMI_CMD is 0), has the PM1 registers and the timer, no
    /// general-purpose events, no power or sleep button.
    /// </summary>
    private static byte[] Fadt(GuestPhysicalAddress facs, GuestPhysicalAddress dsdt)
    {
        const int size = 276;
        const byte eventLength = 4;
        const byte controlLength = 2;
        const byte timerLength = 4;
        const ushort noC2 = 0xFFFF;
        const ushort noC3 = 0xFFFF;

        byte[] table = new byte[size];
        Put(table, 36, (uint)facs.Value);
        Put(table, 40, (uint)dsdt.Value);
        Put(table, 46, (ushort)BootLayout.SciIrq);
        Put(table, 56, (uint)BootLayout.Pm1EventPort);
        Put(table, 64, (uint)BootLayout.Pm1ControlPort);
        Put(table, 76, (uint)BootLayout.PmTimerPort);
        table[88] = eventLength;
        table[89] = controlLength;
        table[91] = timerLength;
        Put(table, 96, noC2);
        Put(table, 98, noC3);
        Put(table, 109, (ushort)(BootArchitecture.LegacyDevices | BootArchitecture.Keyboard8042 | BootArchitecture.NoVga));
        Put(table, 112, (uint)(FixedFeatures.CacheFlush | FixedFeatures.HaltOnEveryProcessor | FixedFeatures.NoFixedPowerButton
            | FixedFeatures.NoFixedSleepButton | FixedFeatures.Timer32 | FixedFeatures.ResetRegister));
        PutPort(table, 116, BootLayout.ResetPort, length: 1);
        table[128] = ResetValue;

        // X_FIRMWARE_CTRL at 132 stays zero: it must, when FIRMWARE_CTRL is not.
        Put(table, 140, dsdt.Value);
        PutPort(table, 148, BootLayout.Pm1EventPort, eventLength);
        PutPort(table, 172, BootLayout.Pm1ControlPort, controlLength);
        PutPort(table, 208, BootLayout.PmTimerPort, timerLength);
        return Table("FACP"u8, revision: 6, table.AsSpan(TableHeaderSize));
    }

    /// <summary>5.2.12.</summary>
    private static byte[] Madt(int cpus)
    {
        const uint has8259 = 1;
        var body = new List<byte>();
        body.AddRange(Little((uint)BootLayout.LocalApic.Value));
        body.AddRange(Little(has8259));
        for (byte cpu = 0; cpu < cpus; cpu++)
        {
            const uint enabled = 1;
            body.AddRange(ControllerStructure(Controller.LocalApic, [cpu, cpu, .. Little(enabled)]));
        }

        const byte ioApicId = 0;
        const uint firstGsi = 0;
        body.AddRange(ControllerStructure(
            Controller.IoApic, [ioApicId, 0, .. Little((uint)BootLayout.IoApic.Value), .. Little(firstGsi)]));

        // The timer's line 0 is wired to pin 2, as on every PC: pin 0 belongs to the 8259.
        body.AddRange(Override(irq: 0, gsi: 2, InterruptLine.AsBus));
        body.AddRange(Override(BootLayout.SciIrq, BootLayout.SciIrq, InterruptLine.ActiveHigh | InterruptLine.Level));

        const byte lint1 = 1;
        body.AddRange(ControllerStructure(
            Controller.LocalApicNmi, [AllProcessors, (byte)InterruptLine.AsBus, 0, lint1]));
        return Table("APIC"u8, revision: 5, body.ToArray());
    }

    private static byte[] Override(byte irq, byte gsi, InterruptLine line)
    {
        const byte isa = 0;
        return ControllerStructure(Controller.InterruptOverride, [isa, irq, .. Little((uint)gsi), (byte)line, 0]);
    }

    private static byte[] ControllerStructure(Controller type, byte[] content) => [(byte)type, (byte)(content.Length + 2), .. content];

    /// <summary>What the machine has that a guest cannot find by itself.</summary>
    private static byte[] Dsdt()
    {
        byte[] softOff = Aml.Name("\\_S5", Aml.Package(
            Aml.Byte(SoftOffSleepType), Aml.Byte(SoftOffSleepType), Aml.Byte(0), Aml.Byte(0)));
        byte[] devices = Aml.Scope(
            "\\_SB",
            IsaDevice("COM1", "PNP0501", BootLayout.SerialPort, BootLayout.SerialPortCount, BootLayout.SerialIrq),
            IsaDevice("RTC", "PNP0B00", BootLayout.RtcPort, BootLayout.RtcPortCount, BootLayout.RtcIrq));

        // Revision 2: integers have 64 bits.
        return Table("DSDT"u8, revision: 2, [.. softOff, .. devices]);
    }

    private static byte[] IsaDevice(string name, string id, ushort port, byte ports, byte irq) => Aml.Device(
        name,
        Aml.Name("_HID", Aml.EisaId(id)),
        Aml.Name("_UID", Aml.Byte(1)),
        Aml.Name("_CRS", Aml.ResourceTemplate(Aml.Io(port, ports), Aml.Irq(irq))));

    /// <summary>A table with the common header, 5.2.6.</summary>
    private static byte[] Table(ReadOnlySpan<byte> signature, byte revision, ReadOnlySpan<byte> body)
    {
        byte[] table = new byte[TableHeaderSize + body.Length];
        signature.CopyTo(table);
        Put(table, 4, (uint)table.Length);
        table[8] = revision;
        OemId.CopyTo(table.AsSpan(10));
        OemTableId.CopyTo(table.AsSpan(16));
        Put(table, 24, 1u);
        Creator.CopyTo(table.AsSpan(28));
        Put(table, 32, 1u);
        body.CopyTo(table.AsSpan(TableHeaderSize));
        table[ChecksumOffset] = Checksum(table);
        return table;
    }

    /// <summary>A generic address structure in I/O space, 5.2.3.2.</summary>
    private static void PutPort(byte[] table, int offset, ushort port, byte length)
    {
        const byte systemIo = 1;
        const byte byteAccess = 1;
        const byte wordAccess = 2;
        const byte doubleWordAccess = 3;

        // The PM1 event block is two registers of two bytes each, and is accessed so.
        byte access = port == BootLayout.Pm1EventPort ? wordAccess : length switch
        {
            1 => byteAccess,
            2 => wordAccess,
            _ => doubleWordAccess,
        };
        table[offset] = systemIo;
        table[offset + 1] = (byte)(length * 8);
        table[offset + 3] = access;
        Put(table, offset + 4, (ulong)port);
    }

    private static byte Checksum(ReadOnlySpan<byte> bytes)
    {
        byte sum = 0;
        foreach (byte b in bytes)
        {
            sum += b;
        }

        return (byte)-sum;
    }

    private static byte[] Little(uint value)
    {
        byte[] bytes = new byte[sizeof(uint)];
        Put(bytes, 0, value);
        return bytes;
    }

    private static void Put(byte[] table, int offset, ushort value) =>
        BinaryPrimitives.WriteUInt16LittleEndian(table.AsSpan(offset), value);

    private static void Put(byte[] table, int offset, uint value) =>
        BinaryPrimitives.WriteUInt32LittleEndian(table.AsSpan(offset), value);

    private static void Put(byte[] table, int offset, ulong value) =>
        BinaryPrimitives.WriteUInt64LittleEndian(table.AsSpan(offset), value);

    private static ReadOnlySpan<byte> OemId => "DMP   "u8;

    private static ReadOnlySpan<byte> OemTableId => "DMPVM   "u8;

    private static ReadOnlySpan<byte> Creator => "DMP "u8;

    /// <summary>MADT: "every processor", in a place where else a processor's number stands.</summary>
    private const byte AllProcessors = 0xFF;

    /// <summary>Interrupt controller structure types (table 5.21).</summary>
    private enum Controller : byte
    {
        LocalApic = 0,
        IoApic = 1,
        InterruptOverride = 2,
        LocalApicNmi = 4,
    }

    /// <summary>MPS INTI flags (table 5.26).</summary>
    [Flags]
    private enum InterruptLine : byte
    {
        AsBus = 0,
        ActiveHigh = 1 << 0,
        Level = 3 << 2,
    }

    /// <summary>IA-PC boot architecture flags (table 5.11).</summary>
    [Flags]
    private enum BootArchitecture : ushort
    {
        LegacyDevices = 1 << 0,
        Keyboard8042 = 1 << 1,
        NoVga = 1 << 2,
    }

    /// <summary>Fixed feature flags (table 5.10).</summary>
    [Flags]
    private enum FixedFeatures : uint
    {
        CacheFlush = 1 << 0,
        HaltOnEveryProcessor = 1 << 2,
        NoFixedPowerButton = 1 << 4,
        NoFixedSleepButton = 1 << 5,
        Timer32 = 1 << 8,
        ResetRegister = 1 << 10,
    }
}
