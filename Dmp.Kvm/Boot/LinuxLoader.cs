using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>
/// Puts a Linux kernel, its RAM disk and all that it expects to find into guest RAM: unpacked, for its 64-bit entry, or as it is, for its
/// 32-bit entry (Linux Documentation/arch/x86/boot.rst, "32-bit Boot Protocol").
/// </summary>
internal static class LinuxLoader
{
    /// <summary>Loads.</summary>
    /// <param name="ram">Guest RAM, all zero.</param>
    /// <param name="kernel">The kernel; no longer needed afterwards.</param>
    /// <param name="request">What to start it with.</param>
    /// <param name="mode">The mode of its entry.</param>
    /// <returns>How the first vCPU begins.</returns>
    /// <exception cref="BootException">The parts do not fit into RAM or into the protocol, or the RAM disk cannot be read.</exception>
    public static BootState Load(IGuestRam ram, KernelImage kernel, BootRequest request, BootMode mode)
    {
        using InitialRamDisk? initrd = request.InitrdPath is null ? null : InitialRamDisk.Open(request.InitrdPath);
        bool packed = mode == BootMode.ProtectedMode;
        (ulong start, ulong reservedEnd) = packed ? ExtentOfPacked(kernel) : ExtentOfUnpacked(kernel);
        KernelPlacement.CheckMemory(ram, kernel, start, reservedEnd, initrd);
        if (packed)
        {
            kernel.ProtectedModeCode.CopyTo(ram.Slice(new(start), kernel.ProtectedModeCode.Length));
        }
        else
        {
            KernelPlacement.LoadSegments(ram, kernel);
        }

        GuestRamRange ramdisk = KernelPlacement.LoadInitrd(ram, kernel.Header.InitrdMaximum + 1UL, reservedEnd, initrd);

        // A kernel that unpacks itself would choose its place at random, and nobody would know where it is.
        bool unpacks = packed && kernel.Elf.Is64Bit;
        string text = unpacks ? $"{request.CommandLine} nokaslr".TrimStart() : request.CommandLine;
        byte[] commandLine = CommandLine.Encode(text, kernel.Header.CommandLineSize);
        commandLine.CopyTo(ram.Slice(BootLayout.CommandLine, commandLine.Length));
        GuestPhysicalAddress rsdp = AcpiTables.Write(ram, request.Cpus);
        BootParameters.Write(ram, kernel.Header, ramdisk, rsdp, packed ? new(start) : default);
        if (!packed)
        {
            BootPageTables.Write(ram);
        }

        return KernelPlacement.StateOf(kernel) with
        {
            Mode = mode,
            UnpacksItself = unpacks,
            Entry = new(packed ? start : kernel.Elf.Entry),
            Esi = (uint)BootLayout.BootParameters.Value,
            PageTableRoot = packed ? default : BootLayout.PageTables,
            GdtLimit = BootGdt.Write(ram, mode),
        };
    }

    /// <summary>From the first segment to the end of what the kernel uses before it reads the memory map.</summary>
    private static (ulong Start, ulong ReservedEnd) ExtentOfUnpacked(KernelImage kernel)
    {
        ulong start = kernel.Elf.Segments[0].PhysicalAddress;
        return (start, Math.Max(kernel.Elf.Segments[^1].PhysicalEnd, EndOfInit(kernel.Header, start)));
    }

    /// <summary>From the packed kernel to the end of what it uses while it unpacks itself to its preferred address.</summary>
    private static (ulong Start, ulong ReservedEnd) ExtentOfPacked(KernelImage kernel)
    {
        SetupHeader header = kernel.Header;
        ulong start = header.ProtectedModeAddress;
        ulong end = start + Math.Min((ulong)kernel.ProtectedModeCode.Length, ulong.MaxValue - start);
        ulong unpackedEnd = Math.Max(kernel.Elf.Segments[^1].PhysicalEnd, EndOfInit(header, header.PreferredAddress));
        return (start, Math.Max(end, unpackedEnd));
    }

    private static ulong EndOfInit(SetupHeader header, ulong start) => start + Math.Min(header.InitSize, ulong.MaxValue - start);
}
