using System.Globalization;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>Puts a kernel's segments and its RAM disk into guest RAM, when there is room for them.</summary>
internal static class KernelPlacement
{
    private const ulong Mebibyte = 1 << 20;

    /// <summary>RAM is given in steps of 2 MiB.</summary>
    private const ulong MemoryStep = 2 * Mebibyte;

    /// <summary>Digits of the image's hash that stand in for a build id: as many as a SHA-1 build id has.</summary>
    private const int BuildIdDigits = 40;

    /// <summary>What is known of every loaded kernel.</summary>
    public static BootState StateOf(KernelImage kernel)
    {
        ulong start = kernel.Elf.Segments[0].PhysicalAddress;
        return new BootState
        {
            Entry = default,
            BootParameters = BootLayout.BootParameters,
            StackTop = BootLayout.StackTop,
            GdtBase = BootLayout.Gdt,
            GdtLimit = 0,
            KernelStart = new(start),
            KernelLength = kernel.Elf.Segments[^1].PhysicalEnd - start,
            KernelVirtualBase = new(kernel.Elf.Segments[0].VirtualAddress),
            KernelId = kernel.Id,
            BuildId = kernel.BuildId ?? kernel.Id[..BuildIdDigits],
        };
    }

    /// <summary>Checks that there is room.</summary>
    /// <param name="ram">Guest RAM.</param>
    /// <param name="kernel">The kernel, for messages.</param>
    /// <param name="start">Where it begins.</param>
    /// <param name="reservedEnd">Where the memory ends that it uses before it reads the memory map.</param>
    /// <param name="initrd">The RAM disk.</param>
    /// <exception cref="BootException">There is not.</exception>
    public static void CheckMemory(IGuestRam ram, KernelImage kernel, ulong start, ulong reservedEnd, InitialRamDisk? initrd)
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

    /// <summary>Copies the segments of an ELF kernel to where they want to be.</summary>
    public static void LoadSegments(IGuestRam ram, KernelImage kernel)
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

    /// <summary>Loads the RAM disk as high as the kernel allows: there it is in nobody's way.</summary>
    /// <param name="ram">Guest RAM.</param>
    /// <param name="limit">Where it has to end at the latest.</param>
    /// <param name="reservedEnd">Where it may begin at the earliest.</param>
    /// <param name="initrd">The RAM disk.</param>
    /// <returns>Where it lies; empty for none.</returns>
    public static GuestRamRange LoadInitrd(IGuestRam ram, ulong limit, ulong reservedEnd, InitialRamDisk? initrd)
    {
        if (initrd is null)
        {
            return default;
        }

        ulong length = (ulong)initrd.Length;
        ulong ceiling = Math.Min(ram.Ranges[0].Length, limit);
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
