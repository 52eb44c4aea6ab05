namespace Dmp.Kvm.Memory;

/// <summary>Sizes and entry bits of x86-64 4-level paging (AMD APM vol. 2, 5.3 and 5.4; Intel SDM vol. 3, 4.5).</summary>
public static class Paging
{
    /// <summary>log2 of the size of a 4 KiB page.</summary>
    public const int PageShift = 12;

    /// <summary>Bytes in a small page, a frame and a page table.</summary>
    public const int PageSize = 1 << PageShift;

    /// <summary>Selects the offset within a 4 KiB page.</summary>
    public const ulong PageOffsetMask = PageSize - 1;

    /// <summary>Bytes in a 2 MiB page.</summary>
    public const ulong LargePageSize = 2UL << 20;

    /// <summary>Bytes in a 1 GiB page.</summary>
    public const ulong HugePageSize = 1UL << 30;

    /// <summary>Entries in one page table of any level.</summary>
    public const int EntriesPerTable = 512;

    /// <summary>Bytes of one entry.</summary>
    public const int EntrySize = sizeof(ulong);

    /// <summary>Selects the frame address in an entry, bits 12..51.</summary>
    public const ulong FrameMask = 0x000F_FFFF_FFFF_F000;

    /// <summary>log2 of the virtual range that one entry of the level covers.</summary>
    /// <param name="level">1 (page table) to 4 (PML4).</param>
    public static int LevelShift(int level) => PageShift + (9 * (level - 1));

    /// <summary>The index into the table of <paramref name="level"/> for a virtual address.</summary>
    public static int Index(ulong virtualAddress, int level) =>
        (int)(virtualAddress >> LevelShift(level)) & (EntriesPerTable - 1);

    /// <summary>Whether the address is canonical for 48-bit virtual addresses.</summary>
    public static bool IsCanonical(ulong virtualAddress) => ((long)(virtualAddress << 16) >> 16) == (long)virtualAddress;
}

/// <summary>Bits of a page-table entry of any level.</summary>
[Flags]
public enum PageEntry : ulong
{
    /// <summary>No bit set: not present.</summary>
    None = 0,

    /// <summary>P: the entry maps something.</summary>
    Present = 1UL << 0,

    /// <summary>R/W: writes are allowed.</summary>
    Writable = 1UL << 1,

    /// <summary>U/S: CPL 3 may use it.</summary>
    User = 1UL << 2,

    /// <summary>PWT: write-through.</summary>
    WriteThrough = 1UL << 3,

    /// <summary>PCD: cache disabled.</summary>
    CacheDisable = 1UL << 4,

    /// <summary>A: used for a translation.</summary>
    Accessed = 1UL << 5,

    /// <summary>D: written through (leaf entries only).</summary>
    Dirty = 1UL << 6,

    /// <summary>PS: the entry of level 2 or 3 is a leaf.</summary>
    Large = 1UL << 7,

    /// <summary>G: survives a CR3 load (leaf entries only, with CR4.PGE).</summary>
    Global = 1UL << 8,

    /// <summary>NX: no instruction fetch (with EFER.NXE).</summary>
    NoExecute = 1UL << 63,
}

/// <summary>Error code of a page fault (AMD APM vol. 2, 8.4.2).</summary>
[Flags]
public enum PageFaultError
{
    /// <summary>A read by supervisor code of a page that is not present.</summary>
    None = 0,

    /// <summary>The page was present: a protection violation.</summary>
    Present = 1 << 0,

    /// <summary>The access was a write.</summary>
    Write = 1 << 1,

    /// <summary>The access was made at CPL 3.</summary>
    User = 1 << 2,

    /// <summary>A reserved bit was set in a present entry.</summary>
    ReservedBit = 1 << 3,

    /// <summary>The access was an instruction fetch.</summary>
    InstructionFetch = 1 << 4,
}
