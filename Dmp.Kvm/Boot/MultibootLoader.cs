using System.Buffers.Binary;
using System.Text;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>
/// Puts a multiboot 1 image, its module and the information about them into guest RAM (Multiboot Specification 0.6.96, 3.2 and 3.3). The
/// image finds the ACPI tables itself, where firmware has them.
/// </summary>
internal static class MultibootLoader
{
    /// <summary>What a multiboot loader leaves in EAX.</summary>
    private const uint LoaderMagic = 0x2BADB002;

    private const int Kibibyte = 1 << 10;

    // All of it is in one page: the information, then what it points to.
    private const int ModulesOffset = 0x80;
    private const int NameOffset = 0xC0;
    private const int MapOffset = 0x100;
    private const int MapEntrySize = 24;
    private const int ModuleStringOffset = 0xE00;

    /// <summary>Loads.</summary>
    /// <param name="ram">Guest RAM, all zero.</param>
    /// <param name="kernel">The kernel; no longer needed afterwards.</param>
    /// <param name="request">What to start it with.</param>
    /// <returns>How the first vCPU begins.</returns>
    /// <exception cref="BootException">The parts do not fit into RAM, or the module cannot be read.</exception>
    public static BootState Load(IGuestRam ram, KernelImage kernel, BootRequest request)
    {
        using InitialRamDisk? module = request.InitrdPath is null ? null : InitialRamDisk.Open(request.InitrdPath);
        ulong end = kernel.Elf.Segments[^1].PhysicalEnd;
        KernelPlacement.CheckMemory(ram, kernel, kernel.Elf.Segments[0].PhysicalAddress, end, module);
        KernelPlacement.LoadSegments(ram, kernel);
        GuestRamRange loaded = KernelPlacement.LoadInitrd(ram, ram.Ranges[0].Length, end, module);

        // As loaders that are given a path have it: the image first, then its arguments.
        byte[] commandLine = CommandLine.Encode(
            request.CommandLine.Length == 0 ? kernel.Path : $"{kernel.Path} {request.CommandLine}", BootLayout.CommandLineCapacity - 1);
        commandLine.CopyTo(ram.Slice(BootLayout.CommandLine, commandLine.Length));
        _ = AcpiTables.Write(ram, request.Cpus);
        WriteInformation(ram, loaded, module);
        return KernelPlacement.StateOf(kernel) with
        {
            Mode = BootMode.ProtectedMode,
            BeginsInXApicMode = true,
            Entry = new(kernel.Elf.Entry),
            Eax = LoaderMagic,
            Ebx = (uint)BootLayout.BootParameters.Value,
            GdtLimit = BootGdt.Write(ram, BootMode.ProtectedMode),
        };
    }

    private static void WriteInformation(IGuestRam ram, GuestRamRange loaded, InitialRamDisk? module)
    {
        Span<byte> page = ram.Slice(BootLayout.BootParameters, Paging.PageSize);
        page.Clear();
        Contents contents = Contents.Memory | Contents.CommandLine | Contents.Modules | Contents.MemoryMap | Contents.LoaderName;
        Put(page, Field.Flags, (uint)contents);
        Put(page, Field.MemoryLower, (uint)(BootLayout.ConventionalEnd.Value / Kibibyte));
        Put(page, Field.MemoryUpper, (uint)((ram.Ranges[0].Length - BootLayout.HighMemory.Value) / Kibibyte));
        Put(page, Field.CommandLine, (uint)BootLayout.CommandLine.Value);
        Put(page, Field.LoaderName, AddressOf(NameOffset));
        "Dmp"u8.CopyTo(page[NameOffset..]);
        Put(page, Field.ModuleAddress, AddressOf(ModulesOffset));
        if (module is not null)
        {
            Put(page, Field.ModuleCount, 1);
            Put(page, ModulesOffset, (uint)loaded.Start.Value);
            Put(page, ModulesOffset + sizeof(uint), (uint)(loaded.Start.Value + loaded.Length));
            Put(page, ModulesOffset + (2 * sizeof(uint)), AddressOf(ModuleStringOffset));

            // A name that is longer than its place ends early; the zero behind it stays.
            Encoding.UTF8.GetEncoder().Convert(
                Path.GetFileName(module.Path), page[ModuleStringOffset..^1], flush: true, out _, out _, out _);
        }

        Put(page, Field.MapAddress, AddressOf(MapOffset));
        int at = MapOffset;
        foreach (MemoryMapEntry range in MemoryMap.Of(ram))
        {
            // The size does not count itself.
            Put(page, at, MapEntrySize - sizeof(uint));
            BinaryPrimitives.WriteUInt64LittleEndian(page[(at + 4)..], range.Start);
            BinaryPrimitives.WriteUInt64LittleEndian(page[(at + 12)..], range.Length);
            Put(page, at + 20, (uint)range.Type);
            at += MapEntrySize;
        }

        Put(page, Field.MapLength, (uint)(at - MapOffset));
    }

    private static uint AddressOf(int offset) => (uint)BootLayout.BootParameters.Value + (uint)offset;

    private static void Put(Span<byte> page, int field, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(page[field..], value);

    /// <summary>Which fields are there.</summary>
    [Flags]
    private enum Contents : uint
    {
        Memory = 1 << 0,
        CommandLine = 1 << 2,
        Modules = 1 << 3,
        MemoryMap = 1 << 6,
        LoaderName = 1 << 9,
    }

    /// <summary>Offsets of the fields, 4 bytes each.</summary>
    private static class Field
    {
        public const int Flags = 0;
        public const int MemoryLower = 4;
        public const int MemoryUpper = 8;
        public const int CommandLine = 16;
        public const int ModuleCount = 20;
        public const int ModuleAddress = 24;
        public const int MapLength = 44;
        public const int MapAddress = 48;
        public const int LoaderName = 64;
    }
}
