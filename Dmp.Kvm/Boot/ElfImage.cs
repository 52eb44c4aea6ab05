using System.Buffers.Binary;

namespace Dmp.Kvm.Boot;

/// <summary>One PT_LOAD segment of a kernel. All its bytes are known to lie inside the file.</summary>
/// <param name="FileOffset">First byte in the file.</param>
/// <param name="FileSize">Bytes in the file.</param>
/// <param name="PhysicalAddress">Where it goes (p_paddr).</param>
/// <param name="VirtualAddress">Where the kernel is linked to see it (p_vaddr).</param>
/// <param name="MemorySize">Bytes in memory; those beyond <paramref name="FileSize"/> are zero.</param>
internal readonly record struct ElfSegment(
    int FileOffset, int FileSize, ulong PhysicalAddress, ulong VirtualAddress, ulong MemorySize)
{
    /// <summary>One past the last physical address.</summary>
    public ulong PhysicalEnd => PhysicalAddress + MemorySize;
}

/// <summary>
/// The parts of an ELF executable for x86 that a loader needs: entry, PT_LOAD segments, build id. (System V ABI, chapters 4 and 5.)
/// </summary>
internal sealed class ElfImage
{
    private const int ClassOffset = 4;
    private const byte Class64 = 2;
    private const byte LittleEndian = 1;
    private const ushort TypeExecutable = 2;
    private const int SmallestHeader = 52;
    private const uint SegmentLoad = 1;
    private const uint SegmentNote = 4;
    private const uint NoteBuildId = 3;
    private const int LongestBuildId = 64;

    /// <summary>More than any kernel has; keeps the check for overlaps cheap.</summary>
    private const int MostSegments = 128;

    private ElfImage(bool is64Bit, ulong entry, List<ElfSegment> segments, string? buildId)
    {
        Is64Bit = is64Bit;
        Entry = entry;
        Segments = segments;
        BuildId = buildId;
    }

    /// <summary>Whether it is an ELF64 file for x86-64, and not an ELF32 file for the 80386.</summary>
    public bool Is64Bit { get; }

    /// <summary>Physical address of the first instruction.</summary>
    public ulong Entry { get; }

    /// <summary>The segments in ascending physical order; at least one, none empty, no two overlapping.</summary>
    public IReadOnlyList<ElfSegment> Segments { get; }

    /// <summary>The GNU build id in hexadecimal, or null when there is none.</summary>
    public string? BuildId { get; }

    /// <summary>Whether a file begins as an ELF file does.</summary>
    public static bool IsPresent(ReadOnlySpan<byte> file) => file.StartsWith("\u007fELF"u8);

    /// <summary>Reads and checks the headers.</summary>
    /// <param name="path">The file's name, for messages.</param>
    /// <param name="file">The whole image; may have something else behind it.</param>
    /// <exception cref="KernelImageException">The image is not a sound x86-64 kernel.</exception>
    public static ElfImage Parse(string path, ReadOnlySpan<byte> file)
    {
        if (!IsPresent(file))
        {
            throw new KernelImageException(
                path, "what the payload unpacks to is not an ELF kernel; the file is damaged, get it again");
        }

        if (file.Length < SmallestHeader || file.Length < FormatOf(file).HeaderSize)
        {
            throw new KernelImageException(
                path, $"truncated: an ELF header has {SmallestHeader} bytes or more, the file {file.Length}; get it again");
        }

        ElfFormat format = FormatOf(file);
        if (file[ClassOffset] != format.Class || file[5] != LittleEndian || U16(file, 18) != format.Machine)
        {
            throw new KernelImageException(
                path,
                $"an ELF file for another machine ({(file[ClassOffset] == Class64 ? 64 : 32)} bits, machine {U16(file, 18)}); "
                + "use an x86-64 kernel");
        }

        if (U16(file, 16) != TypeExecutable)
        {
            throw new KernelImageException(
                path, $"an ELF file of type {U16(file, 16)}, not an executable; use the vmlinux, not an object or a module");
        }

        ReadOnlySpan<byte> table = ProgramHeaders(path, file, format);
        var segments = new List<ElfSegment>();
        string? buildId = null;
        for (; !table.IsEmpty; table = table[format.ProgramHeaderSize..])
        {
            uint type = U32(table, 0);
            if (type == SegmentLoad && format.Word(table, format.MemorySize) != 0)
            {
                segments.Add(ReadSegment(path, table, format, file.Length));
            }
            else if (type == SegmentNote)
            {
                buildId ??= FindBuildId(file, format.Word(table, format.Offset), format.Word(table, format.FileSize));
            }
        }

        if (segments.Count is 0 or > MostSegments)
        {
            throw new KernelImageException(path, $"has {segments.Count} segments to load; use a linked vmlinux or bzImage");
        }

        segments.Sort((a, b) => a.PhysicalAddress.CompareTo(b.PhysicalAddress));
        CheckOverlaps(path, segments);
        return new ElfImage(
            file[ClassOffset] == Class64, FindEntry(path, format.Word(file, ElfFormat.Entry), segments), segments, buildId);
    }

    private static ElfFormat FormatOf(ReadOnlySpan<byte> file) =>
        file[ClassOffset] == Class64 ? ElfFormat.SixtyFour : ElfFormat.ThirtyTwo;

    private static ReadOnlySpan<byte> ProgramHeaders(string path, ReadOnlySpan<byte> file, ElfFormat format)
    {
        ulong offset = format.Word(file, format.ProgramHeaders);
        int size = U16(file, format.ProgramHeaderEntry);
        int count = U16(file, format.ProgramHeaderEntry + sizeof(ushort));
        if (count == 0)
        {
            throw new KernelImageException(path, "has no program headers; use a linked vmlinux or bzImage");
        }

        if (size != format.ProgramHeaderSize)
        {
            throw new KernelImageException(
                path, $"has program headers of {size} bytes instead of {format.ProgramHeaderSize}; the file is damaged, get it again");
        }

        ulong length = (ulong)(count * format.ProgramHeaderSize);
        if (!Inside(offset, length, file.Length))
        {
            throw new KernelImageException(path, "truncated: the program headers lie outside the file; get it again");
        }

        return file.Slice((int)offset, (int)length);
    }

    private static ElfSegment ReadSegment(string path, ReadOnlySpan<byte> header, ElfFormat format, int fileLength)
    {
        ulong offset = format.Word(header, format.Offset);
        ulong virtualAddress = format.Word(header, format.VirtualAddress);
        ulong physicalAddress = format.Word(header, format.PhysicalAddress);
        ulong fileSize = format.Word(header, format.FileSize);
        ulong memorySize = format.Word(header, format.MemorySize);
        if (!Inside(offset, fileSize, fileLength))
        {
            throw new KernelImageException(
                path,
                $"truncated: the segment at 0x{physicalAddress:x} has {fileSize} bytes at offset {offset}, the image ends at {fileLength}; "
                + "get it again");
        }

        if (fileSize > memorySize || physicalAddress + memorySize < physicalAddress)
        {
            throw new KernelImageException(
                path,
                $"the segment at 0x{physicalAddress:x} has an impossible size ({fileSize} bytes in the file, {memorySize} in memory); "
                + "the file is damaged, get it again");
        }

        return new ElfSegment((int)offset, (int)fileSize, physicalAddress, virtualAddress, memorySize);
    }

    private static void CheckOverlaps(string path, List<ElfSegment> segments)
    {
        for (int i = 1; i < segments.Count; i++)
        {
            if (segments[i].PhysicalAddress < segments[i - 1].PhysicalEnd)
            {
                throw new KernelImageException(
                    path,
                    $"the segments at 0x{segments[i - 1].PhysicalAddress:x} and 0x{segments[i].PhysicalAddress:x} overlap; "
                    + "the file is damaged, get it again");
            }
        }
    }

    /// <summary>Linux states the entry as a physical address; other kernels that are linked high may state the virtual one.</summary>
    private static ulong FindEntry(string path, ulong entry, List<ElfSegment> segments)
    {
        foreach (ElfSegment segment in segments)
        {
            if (entry - segment.PhysicalAddress < (ulong)segment.FileSize)
            {
                return entry;
            }
        }

        foreach (ElfSegment segment in segments)
        {
            if (entry - segment.VirtualAddress < (ulong)segment.FileSize)
            {
                return entry - segment.VirtualAddress + segment.PhysicalAddress;
            }
        }

        throw new KernelImageException(
            path, $"the entry point 0x{entry:x} lies in no segment; the file is damaged, get it again");
    }

    /// <summary>Notes that make no sense are no reason to refuse a kernel: then it has no build id.</summary>
    private static string? FindBuildId(ReadOnlySpan<byte> file, ulong offset, ulong length)
    {
        if (!Inside(offset, length, file.Length))
        {
            return null;
        }

        ReadOnlySpan<byte> notes = file.Slice((int)offset, (int)length);
        while (notes.Length >= 3 * sizeof(uint))
        {
            ulong nameSize = U32(notes, 0);
            ulong descriptionSize = U32(notes, 4);
            uint type = U32(notes, 8);
            notes = notes[(3 * sizeof(uint))..];
            ulong descriptionStart = AlignNote(nameSize);
            if (descriptionStart + descriptionSize > (ulong)notes.Length)
            {
                return null;
            }

            ReadOnlySpan<byte> description = notes.Slice((int)descriptionStart, (int)descriptionSize);
            if (type == NoteBuildId && notes[..(int)nameSize].SequenceEqual("GNU\0"u8) && descriptionSize is > 0 and <= LongestBuildId)
            {
                return Convert.ToHexStringLower(description);
            }

            notes = notes[(int)Math.Min((ulong)notes.Length, descriptionStart + AlignNote(descriptionSize))..];
        }

        return null;
    }

    private static ulong AlignNote(ulong size) => (size + 3) & ~3UL;

    private static bool Inside(ulong offset, ulong length, int total) =>
        length <= (ulong)total && offset <= (ulong)total - length;

    private static ushort U16(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt16LittleEndian(bytes[offset..]);

    private static uint U32(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt32LittleEndian(bytes[offset..]);
}
