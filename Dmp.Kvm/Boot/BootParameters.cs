using System.Buffers.Binary;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>
/// boot_params, the "zero page" (Linux Documentation/arch/x86/zero-page.rst). screen_info stays zero: the machine has no VGA.
/// </summary>
internal static class BootParameters
{
    /// <summary>type_of_loader: a loader without an assigned number.</summary>
    private const byte UnknownLoader = 0xFF;

    /// <summary>loadflags: the protected-mode code is above 1 MiB.</summary>
    private const byte LoadedHigh = 1 << 0;

    /// <summary>vid_mode: "normal", whatever the screen is in.</summary>
    private const ushort NormalVideoMode = 0xFFFF;

    private const int E820EntrySize = 20;

    /// <summary>Writes the page.</summary>
    /// <param name="ram">Guest RAM.</param>
    /// <param name="header">The kernel's setup header.</param>
    /// <param name="initrd">Where the RAM disk lies; empty for none.</param>
    /// <param name="rsdp">Where ACPI's root pointer lies.</param>
    /// <param name="code32Start">Where the 32-bit entry is; 0 when the kernel is not entered there.</param>
    public static void Write(
        IGuestRam ram, SetupHeader header, GuestRamRange initrd, GuestPhysicalAddress rsdp, GuestPhysicalAddress code32Start)
    {
        Span<byte> page = ram.Slice(BootLayout.BootParameters, Paging.PageSize);
        page.Clear();
        header.Bytes.CopyTo(page[SetupHeader.Start..]);

        Put(page, SetupHeader.Field.VideoMode, NormalVideoMode);
        page[SetupHeader.Field.LoaderType] = UnknownLoader;
        page[SetupHeader.Field.LoadFlags] |= LoadedHigh;
        Put(page, SetupHeader.Field.Code32Start, (uint)code32Start.Value);
        Put(page, SetupHeader.Field.CommandLinePointer, (uint)BootLayout.CommandLine.Value);
        Put(page, SetupHeader.Field.SetupData, 0UL);
        Put(page, Field.AcpiRsdpAddress, rsdp.Value);

        Put(page, SetupHeader.Field.RamdiskImage, (uint)initrd.Start.Value);
        Put(page, Field.ExtendedRamdiskImage, (uint)(initrd.Start.Value >> 32));
        Put(page, SetupHeader.Field.RamdiskSize, (uint)initrd.Length);
        Put(page, Field.ExtendedRamdiskSize, (uint)(initrd.Length >> 32));

        IReadOnlyList<MemoryMapEntry> map = MemoryMap.Of(ram);
        page[Field.E820Entries] = (byte)map.Count;
        Span<byte> entry = page[Field.E820Table..];
        foreach (MemoryMapEntry range in map)
        {
            Put(entry, 0, range.Start);
            Put(entry, 8, range.Length);
            Put(entry, 16, (uint)range.Type);
            entry = entry[E820EntrySize..];
        }
    }

    private static void Put(Span<byte> page, int field, ushort value) => BinaryPrimitives.WriteUInt16LittleEndian(page[field..], value);

    private static void Put(Span<byte> page, int field, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(page[field..], value);

    private static void Put(Span<byte> page, int field, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(page[field..], value);

    /// <summary>Offsets of the fields outside the setup header.</summary>
    public static class Field
    {
        /// <summary>acpi_rsdp_addr, 8 bytes.</summary>
        public const int AcpiRsdpAddress = 0x070;

        /// <summary>ext_ramdisk_image, 4 bytes: bits 32 to 63.</summary>
        public const int ExtendedRamdiskImage = 0x0C0;

        /// <summary>ext_ramdisk_size, 4 bytes: bits 32 to 63.</summary>
        public const int ExtendedRamdiskSize = 0x0C4;

        /// <summary>e820_entries, 1 byte.</summary>
        public const int E820Entries = 0x1E8;

        /// <summary>e820_table, 20 bytes an entry.</summary>
        public const int E820Table = 0x2D0;
    }
}
