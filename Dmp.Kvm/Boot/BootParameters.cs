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

    private const int LargestE820Map = 128;
    private const int E820EntrySize = 20;

    /// <summary>Writes the page.</summary>
    /// <param name="ram">Guest RAM.</param>
    /// <param name="header">The kernel's setup header.</param>
    /// <param name="initrd">Where the RAM disk lies; empty for none.</param>
    /// <param name="rsdp">Where ACPI's root pointer lies.</param>
    public static void Write(IGuestRam ram, SetupHeader header, GuestRamRange initrd, GuestPhysicalAddress rsdp)
    {
        Span<byte> page = ram.Slice(BootLayout.BootParameters, Paging.PageSize);
        page.Clear();
        header.Bytes.CopyTo(page[SetupHeader.Start..]);

        Put(page, SetupHeader.Field.VideoMode, NormalVideoMode);
        page[SetupHeader.Field.LoaderType] = UnknownLoader;
        page[SetupHeader.Field.LoadFlags] |= LoadedHigh;
        Put(page, SetupHeader.Field.CommandLinePointer, (uint)BootLayout.CommandLine.Value);
        Put(page, SetupHeader.Field.SetupData, 0UL);
        Put(page, Field.AcpiRsdpAddress, rsdp.Value);

        Put(page, SetupHeader.Field.RamdiskImage, (uint)initrd.Start.Value);
        Put(page, Field.ExtendedRamdiskImage, (uint)(initrd.Start.Value >> 32));
        Put(page, SetupHeader.Field.RamdiskSize, (uint)initrd.Length);
        Put(page, Field.ExtendedRamdiskSize, (uint)(initrd.Length >> 32));

        List<(ulong Start, ulong End, E820Type Type)> map = MemoryMap(ram);
        page[Field.E820Entries] = (byte)map.Count;
        Span<byte> entry = page[Field.E820Table..];
        foreach ((ulong start, ulong end, E820Type type) in map)
        {
            Put(entry, 0, start);
            Put(entry, 8, end - start);
            Put(entry, 16, (uint)type);
            entry = entry[E820EntrySize..];
        }
    }

    /// <summary>RAM, less what a PC reserves below 1 MiB (there are the ACPI tables).</summary>
    private static List<(ulong Start, ulong End, E820Type Type)> MemoryMap(IGuestRam ram)
    {
        ulong conventional = BootLayout.ConventionalEnd.Value;
        ulong high = BootLayout.HighMemory.Value;
        List<(ulong Start, ulong End, E820Type Type)> map =
            [(0, conventional, E820Type.Ram), (conventional, high, E820Type.Reserved)];
        foreach (GuestRamRange range in ram.Ranges.Take(LargestE820Map - map.Count))
        {
            ulong start = Math.Max(range.Start.Value, high);
            ulong end = range.Start.Value + range.Length;
            if (end > start)
            {
                map.Add((start, end, E820Type.Ram));
            }
        }

        return map;
    }

    private static void Put(Span<byte> page, int field, ushort value) => BinaryPrimitives.WriteUInt16LittleEndian(page[field..], value);

    private static void Put(Span<byte> page, int field, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(page[field..], value);

    private static void Put(Span<byte> page, int field, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(page[field..], value);

    /// <summary>Address range types (ACPI 6.4, 15.1).</summary>
    private enum E820Type : uint
    {
        Ram = 1,
        Reserved = 2,
    }

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
