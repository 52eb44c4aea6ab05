using System.Buffers.Binary;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>The GDT of Linux's boot protocols: __BOOT_CS at 0x10, __BOOT_DS at 0x18, both flat.</summary>
internal static class BootGdt
{
    private const SegmentDescriptor Flat =
        SegmentDescriptor.FullLimit | SegmentDescriptor.Granular | SegmentDescriptor.Present
        | SegmentDescriptor.CodeOrData | SegmentDescriptor.Accessed | SegmentDescriptor.ReadableOrWritable;

    private const SegmentDescriptor Code = Flat | SegmentDescriptor.Executable;
    private const SegmentDescriptor Data = Flat | SegmentDescriptor.Big;

    /// <summary>Writes it.</summary>
    /// <param name="ram">Guest RAM.</param>
    /// <param name="mode">The mode of the code segment.</param>
    /// <returns>Its limit.</returns>
    public static ushort Write(IGuestRam ram, BootMode mode)
    {
        const int size = BootLayout.DataSelector + sizeof(ulong);
        Span<byte> table = ram.Slice(BootLayout.Gdt, size);
        table.Clear();
        BinaryPrimitives.WriteUInt64LittleEndian(table[BootLayout.CodeSelector..], CodeSegment(mode));
        BinaryPrimitives.WriteUInt64LittleEndian(table[BootLayout.DataSelector..], (ulong)Data);
        return size - 1;
    }

    /// <summary>The descriptor of a flat code segment of ring 0.</summary>
    /// <param name="mode">Its mode.</param>
    internal static ulong CodeSegment(BootMode mode) =>
        (ulong)(Code | (mode == BootMode.LongMode ? SegmentDescriptor.Long : SegmentDescriptor.Big));

    /// <summary>Bits of a code or data segment descriptor (AMD APM vol. 2, 4.7 and 4.8).</summary>
    [Flags]
    private enum SegmentDescriptor : ulong
    {
        FullLimit = 0x000F_0000_0000_FFFF,
        Accessed = 1UL << 40,
        ReadableOrWritable = 1UL << 41,
        Executable = 1UL << 43,
        CodeOrData = 1UL << 44,
        Present = 1UL << 47,
        Long = 1UL << 53,
        Big = 1UL << 54,
        Granular = 1UL << 55,
    }
}
