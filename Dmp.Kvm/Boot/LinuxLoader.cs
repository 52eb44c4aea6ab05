using System.Globalization;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>Puts a Linux kernel, its RAM disk and all that it expects to find into guest RAM.</summary>
public static class LinuxLoader
{
    private const ulong Mebibyte = 1 << 20;

    /// <summary>RAM is given in steps of 2 MiB.</summary>
    private const ulong MemoryStep = 2 * Mebibyte;

    /// <summary>Digits of the image's hash that stand in for a build id: as many as a SHA-1 build id has.</summary>
    private const int BuildIdDigits = 40;

    /// <summary>Loads.</summary>
    /// <param name="ram">Guest RAM, all zero.</param>
    /// <param name="kernel">The kernel; no longer needed afterwards.</param>
    /// <param name="request">What to start it with.</param>
    /// <returns>How the first vCPU begins.</returns>
    /// <exception cref="BootException">The parts do not fit into RAM or into the protocol, or the RAM disk cannot be read.</exception>
    public static BootState Load(IGuestRam ram, KernelImage kernel, BootRequest request)
    {
        ArgumentNullException.ThrowIfNull(ram);
        ArgumentNullException.ThrowIfNull(kernel);
        ArgumentNullException.ThrowIfNull(request);
        if (ram.Ranges.Count == 0 || ram.Ranges[0].Start.Value != 0)
        {
            throw new BootException("guest RAM does not begin at address 0; give the machine memory");
        }

        using InitialRamDisk? initrd = request.InitrdPath is null ? null : InitialRamDisk.Open(request.InitrdPath);
        (ulong kernelStart, ulong kernelEnd, ulong reservedEnd) = Extent(kernel);
        CheckMemory(ram, kernel, kernelStart, reservedEnd, initrd);
        LoadSegments(ram, kernel);
        GuestRamRange ramdisk = LoadInitrd(ram, kernel.Header, reservedEnd, initrd);

        byte[] commandLine = CommandLine.Encode(request.CommandLine, kernel.Header.CommandLineSize);
        commandLine.CopyTo(ram.Slice(BootLayout.CommandLine, commandLine.Length));
        GuestPhysicalAddress rsdp = AcpiTables.Write(ram, request.Cpus);
        BootParameters.Write(ram, kernel.Header, ramdisk, rsdp);
        BootPageTables.Write(ram);

        return new BootState
        {
            Entry = new(kernel.Elf.Entry),
            BootParameters = BootLayout.BootParameters,
            PageTableRoot = BootLayout.PageTables,
            StackTop = BootLayout.StackTop,
            GdtBase = BootLayout.Gdt,
            GdtLimit = BootGdt.Write(ram),
            KernelStart = new(kernelStart),
            KernelLength = kernelEnd - kernelStart,
            KernelVirtualBase = new(kernel.Elf.Segments[0].VirtualAddress),
            KernelId = kernel.Id,
            BuildId = kernel.BuildId ?? kernel.Id[..BuildIdDigits],
        };
    }

    /// <summary>From the first segment to the last, and to the end of what the kernel uses before it reads the memory map.</summary>
    private static (ulong Start, ulong End, ulong ReservedEnd) Extent(KernelImage kernel)
    {
        ulong start = kernel.Elf.Segments[0].PhysicalAddress;
        ulong end = kernel.Elf.Segments[^1].PhysicalEnd;
        ulong initEnd = start + Math.Min(kernel.Header.InitSize, ulong.MaxValue - start);
        return (start, end, Math.Max(end, initEnd));
    }

    private static void CheckMemory(IGuestRam ram, KernelImage kernel, ulong start, ulong reservedEnd, InitialRamDisk? initrd)
    {
        ulong low = ram.Ranges[0].Length;
        if (start < BootLayout.HighMemory.Value)
        {
            throw new KernelImageException(
                kernel.Path, $"wants to lie at 0x{start:x}, below 1 MiB, where the PC's own tables are; use another kernel");
        }

        ulong ramdisk = Paging.PageOffsetMask + (ulong)(initrd?.Length ?? 0) & ~Paging.PageOffsetMask;
        if (low < BootLayout.HighMemory.Value || reservedEnd > low || ramdisk > low - reservedEnd)
        {
            string parts = initrd is null ? "" : string.Create(CultureInfo.InvariantCulture, $" and the RAM disk {Mib(ramdisk)} MiB");
            string advice = reservedEnd > BootLayout.IdentityMapped || ramdisk > BootLayout.IdentityMapped - reservedEnd
                ? "use a smaller one"
                : string.Create(CultureInfo.InvariantCulture, $"use --memory {Mib(Up(reservedEnd + ramdisk, MemoryStep))}M or more");
            throw new BootException(string.Create(
                CultureInfo.InvariantCulture,
                $"{kernel.Path}: the kernel needs memory up to {Mib(reservedEnd)} MiB{parts}, "
                + $"the guest has {low / Mebibyte} MiB below its I/O hole; {advice}"));
        }
    }

    private static void LoadSegments(IGuestRam ram, KernelImage kernel)
    {
        foreach (ElfSegment segment in kernel.Elf.Segments)
        {
            // CheckMemory has seen that RAM below the I/O hole holds all of it; bss alone may be larger than a span.
            var target = new GuestPhysicalAddress(segment.PhysicalAddress);
            kernel.Bytes.Slice(segment.FileOffset, segment.FileSize).CopyTo(ram.Slice(target, segment.FileSize));
            Clear(ram, target.Plus((ulong)segment.FileSize), segment.MemorySize - (ulong)segment.FileSize);
        }
    }

    private static void Clear(IGuestRam ram, GuestPhysicalAddress start, ulong length)
    {
        while (length > 0)
        {
            int piece = (int)Math.Min(length, Paging.LargePageSize);
            Span<byte> bytes = ram.Slice(start, piece);

            // Fresh RAM reads as zero without being there: reading leaves it so, writing would make it resident.
            if (bytes.ContainsAnyExcept((byte)0))
            {
                bytes.Clear();
            }

            start = start.Plus((ulong)piece);
            length -= (ulong)piece;
        }
    }

    /// <summary>As high as the kernel allows: there it is in nobody's way.</summary>
    private static GuestRamRange LoadInitrd(IGuestRam ram, SetupHeader header, ulong reservedEnd, InitialRamDisk? initrd)
    {
        if (initrd is null)
        {
            return default;
        }

        ulong length = (ulong)initrd.Length;
        ulong ceiling = Math.Min(ram.Ranges[0].Length, header.InitrdMaximum + 1UL);
        if (length > ceiling || ((ceiling - length) & ~Paging.PageOffsetMask) < reservedEnd)
        {
            throw new BootException(string.Create(
                CultureInfo.InvariantCulture,
                $"{initrd.Path}: {Mib(length)} MiB do not fit between the kernel's end at {Mib(reservedEnd)} MiB "
                + $"and {ceiling / Mebibyte} MiB, the highest that the kernel allows; use a smaller RAM disk"));
        }

        var start = new GuestPhysicalAddress((ceiling - length) & ~Paging.PageOffsetMask);
        initrd.ReadInto(ram, start);
        return new GuestRamRange(start, length);
    }

    private static ulong Mib(ulong bytes) => Up(bytes, Mebibyte) / Mebibyte;

    private static ulong Up(ulong bytes, ulong step)
    {
        ulong rest = bytes % step;
        return rest == 0 || bytes > ulong.MaxValue - step ? bytes : bytes + step - rest;
    }
}
