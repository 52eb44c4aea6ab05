using System.Buffers.Binary;

namespace Dmp.Kvm.Boot;

/// <summary>Where the fields of an ELF file's headers are: those of Elf64_Ehdr and Elf64_Phdr, or of Elf32_Ehdr and Elf32_Phdr.</summary>
internal sealed record ElfFormat
{
    /// <summary>e_entry.</summary>
    public const int Entry = 24;

    /// <summary>ELF64 for x86-64.</summary>
    public static readonly ElfFormat SixtyFour = new()
    {
        Class = 2,
        Machine = 62,
        WordSize = sizeof(ulong),
        HeaderSize = 64,
        ProgramHeaders = 32,
        ProgramHeaderEntry = 54,
        ProgramHeaderSize = 56,
        Offset = 8,
        VirtualAddress = 16,
        PhysicalAddress = 24,
        FileSize = 32,
        MemorySize = 40,
    };

    /// <summary>ELF32 for the 80386.</summary>
    public static readonly ElfFormat ThirtyTwo = new()
    {
        Class = 1,
        Machine = 3,
        WordSize = sizeof(uint),
        HeaderSize = 52,
        ProgramHeaders = 28,
        ProgramHeaderEntry = 42,
        ProgramHeaderSize = 32,
        Offset = 4,
        VirtualAddress = 8,
        PhysicalAddress = 12,
        FileSize = 16,
        MemorySize = 20,
    };

    /// <summary>EI_CLASS.</summary>
    public required byte Class { get; init; }

    /// <summary>e_machine.</summary>
    public required ushort Machine { get; init; }

    /// <summary>Size of the file's header.</summary>
    public required int HeaderSize { get; init; }

    /// <summary>Offset of e_phoff.</summary>
    public required int ProgramHeaders { get; init; }

    /// <summary>Offset of e_phentsize; e_phnum is behind it.</summary>
    public required int ProgramHeaderEntry { get; init; }

    /// <summary>Size of a program header.</summary>
    public required int ProgramHeaderSize { get; init; }

    /// <summary>Offset of p_offset.</summary>
    public required int Offset { get; init; }

    /// <summary>Offset of p_vaddr.</summary>
    public required int VirtualAddress { get; init; }

    /// <summary>Offset of p_paddr.</summary>
    public required int PhysicalAddress { get; init; }

    /// <summary>Offset of p_filesz.</summary>
    public required int FileSize { get; init; }

    /// <summary>Offset of p_memsz.</summary>
    public required int MemorySize { get; init; }

    private int WordSize { get; init; }

    /// <summary>Reads an address, an offset or a size.</summary>
    public ulong Word(ReadOnlySpan<byte> bytes, int offset) => WordSize == sizeof(ulong)
        ? BinaryPrimitives.ReadUInt64LittleEndian(bytes[offset..])
        : BinaryPrimitives.ReadUInt32LittleEndian(bytes[offset..]);
}
