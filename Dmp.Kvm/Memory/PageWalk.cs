namespace Dmp.Kvm.Memory;

/// <summary>How the guest accesses memory.</summary>
[Flags]
public enum PageAccess
{
    /// <summary>A data read by supervisor code.</summary>
    Read = 0,

    /// <summary>A data write.</summary>
    Write = 1 << 0,

    /// <summary>By code at (virtual) CPL 3.</summary>
    User = 1 << 1,

    /// <summary>An instruction fetch.</summary>
    Fetch = 1 << 2,

    /// <summary>Only look: no accessed or dirty bit is set in the guest's entries.</summary>
    Probe = 1 << 3,
}

/// <summary>The paging mode that a walk obeys.</summary>
/// <param name="Cr3">The guest's CR3 (PCID and PWT/PCD bits are ignored).</param>
/// <param name="WriteProtect">CR0.WP.</param>
/// <param name="NoExecuteEnabled">EFER.NXE.</param>
/// <param name="GlobalEnabled">CR4.PGE.</param>
public readonly record struct PagingMode(ulong Cr3, bool WriteProtect, bool NoExecuteEnabled, bool GlobalEnabled);

/// <summary>What a walk found.</summary>
public readonly struct Translation
{
    /// <summary>Guest physical address of the byte asked for.</summary>
    public GuestPhysicalAddress Address { get; init; }

    /// <summary>Level of the leaf: 1 (4 KiB), 2 (2 MiB), 3 (1 GiB).</summary>
    public int Level { get; init; }

    /// <summary>R/W of all levels.</summary>
    public bool Writable { get; init; }

    /// <summary>U/S of all levels.</summary>
    public bool User { get; init; }

    /// <summary>No level forbids instruction fetches.</summary>
    public bool Executable { get; init; }

    /// <summary>G of the leaf, with CR4.PGE.</summary>
    public bool Global { get; init; }

    /// <summary>A of the leaf, before this walk.</summary>
    public bool Accessed { get; init; }

    /// <summary>D of the leaf.</summary>
    public bool Dirty { get; init; }

    /// <summary>Whether the walk reached a leaf and the access is allowed.</summary>
    public bool Allowed { get; init; }

    /// <summary>The error code of the page fault, when it is not.</summary>
    public PageFaultError Error { get; init; }
}

/// <summary>An entry on the way to a page.</summary>
/// <param name="Slot">Where it is.</param>
/// <param name="Entry">What it is.</param>
internal readonly record struct PathEntry(GuestPhysicalAddress Slot, ulong Entry);

/// <summary>
/// Walks the guest's own 4-level tables as the processor does (AMD APM vol. 2, 5.3; Intel SDM vol. 3, 4.5 to 4.8). Pure but for the
/// accessed and dirty bits, which are set with compare-exchange because another vCPU may change the entry.
/// </summary>
public static class PageWalk
{
    /// <summary>Levels of the tables: entries that lead to a page of 4 KiB.</summary>
    internal const int Levels = TopLevel;

    private const int TopLevel = 4;
    private const ulong LargeFrameMask = Paging.FrameMask & ~(Paging.LargePageSize - 1);
    private const ulong HugeFrameMask = Paging.FrameMask & ~(Paging.HugePageSize - 1);

    // Physical addresses are 46 bits wide in the CPUID model's worst case; bits above 51 are ignored, MAXPHYADDR..51 are reserved.
    private const ulong ReservedAddressBits = 0x000F_C000_0000_0000;

    /// <summary>Translates an address.</summary>
    /// <param name="memory">Guest RAM.</param>
    /// <param name="mode">The paging mode.</param>
    /// <param name="virtualAddress">A canonical address.</param>
    /// <param name="access">The access to check.</param>
    public static Translation Translate(GuestMemory memory, in PagingMode mode, ulong virtualAddress, PageAccess access)
    {
        ArgumentNullException.ThrowIfNull(memory);
        Translation translation;
        while (!TryTranslate(memory, mode, virtualAddress, access, out translation))
        {
            // Another vCPU changed an entry on the way: what is marked accessed and dirty must be what is used.
        }

        return translation;
    }

    /// <summary>Reads the entries that lead to a page of 4 KiB, all of them marked accessed: a TLB may hold what they say.</summary>
    /// <param name="memory">Guest RAM.</param>
    /// <param name="cr3">The guest's CR3.</param>
    /// <param name="virtualAddress">An address in the page.</param>
    /// <param name="path">Receives them, that of the top level first.</param>
    /// <returns>Whether there is such a path.</returns>
    internal static bool TryPath(GuestMemory memory, ulong cr3, ulong virtualAddress, Span<PathEntry> path)
    {
        ulong table = cr3 & Paging.FrameMask;
        for (int level = TopLevel; level >= 1; level--)
        {
            GuestPhysicalAddress slot = new(table + ((ulong)Paging.Index(virtualAddress, level) * Paging.EntrySize));
            if (!memory.Contains(slot, Paging.EntrySize))
            {
                return false;
            }

            ulong entry = Volatile.Read(ref memory.Word(slot));
            PageEntry bits = (PageEntry)entry;
            bool ends = level > 1 && bits.Has(PageEntry.Large);
            if (!bits.Has(PageEntry.Present | PageEntry.Accessed) || ends || (entry & ReservedAddressBits) != 0)
            {
                return false;
            }

            path[TopLevel - level] = new PathEntry(slot, entry);
            table = entry & Paging.FrameMask;
        }

        return true;
    }

    /// <summary>One walk from the top.</summary>
    /// <returns>Whether no entry changed between its reading and its marking.</returns>
    private static bool TryTranslate(
        GuestMemory memory, in PagingMode mode, ulong virtualAddress, PageAccess access, out Translation translation)
    {
        PageFaultError error = ErrorOf(mode, access);
        ulong table = mode.Cr3 & Paging.FrameMask;
        bool writable = true;
        bool user = true;
        bool executable = true;
        for (int level = TopLevel; ; level--)
        {
            GuestPhysicalAddress slot = new(table + ((ulong)Paging.Index(virtualAddress, level) * Paging.EntrySize));
            if (!memory.Contains(slot, Paging.EntrySize))
            {
                // A table outside RAM reads as all ones on real hardware: reserved bits.
                translation = Fault(error | PageFaultError.Present | PageFaultError.ReservedBit);
                return true;
            }

            ref ulong word = ref memory.Word(slot);
            ulong entry = Volatile.Read(ref word);
            PageEntry bits = (PageEntry)entry;
            if (!bits.Has(PageEntry.Present))
            {
                translation = Fault(error);
                return true;
            }

            if (HasReservedBits(entry, level, mode))
            {
                translation = Fault(error | PageFaultError.Present | PageFaultError.ReservedBit);
                return true;
            }

            writable &= bits.Has(PageEntry.Writable);
            user &= bits.Has(PageEntry.User);
            executable &= !(mode.NoExecuteEnabled && bits.Has(PageEntry.NoExecute));
            bool leaf = level == 1 || (level < TopLevel && bits.Has(PageEntry.Large));
            if (!leaf)
            {
                if (!TrySetBits(ref word, entry, PageEntry.Accessed, access))
                {
                    translation = default;
                    return false;
                }

                table = entry & Paging.FrameMask;
                continue;
            }

            if (!IsAllowed(mode, access, writable, user, executable))
            {
                translation = Fault(error | PageFaultError.Present);
                return true;
            }

            PageEntry used = access.Has(PageAccess.Write) ? PageEntry.Accessed | PageEntry.Dirty : PageEntry.Accessed;
            if (!TrySetBits(ref word, entry, used, access))
            {
                translation = default;
                return false;
            }

            ulong frame = entry & level switch { 1 => Paging.FrameMask, 2 => LargeFrameMask, _ => HugeFrameMask };
            ulong within = virtualAddress & ((1UL << Paging.LevelShift(level)) - 1);
            translation = new Translation
            {
                Address = new GuestPhysicalAddress(frame + within),
                Level = level,
                Writable = writable,
                User = user,
                Executable = executable,
                Global = mode.GlobalEnabled && bits.Has(PageEntry.Global),
                Accessed = bits.Has(PageEntry.Accessed),
                Dirty = bits.Has(PageEntry.Dirty) || access.Has(PageAccess.Write),
                Allowed = true,
            };
            return true;
        }
    }

    private static Translation Fault(PageFaultError error) => new() { Error = error };

    private static PageFaultError ErrorOf(in PagingMode mode, PageAccess access) =>
        (access.Has(PageAccess.Write) ? PageFaultError.Write : 0)
        | (access.Has(PageAccess.User) ? PageFaultError.User : 0)
        | (access.Has(PageAccess.Fetch) && mode.NoExecuteEnabled ? PageFaultError.InstructionFetch : 0);

    private static bool IsAllowed(in PagingMode mode, PageAccess access, bool writable, bool user, bool executable)
    {
        if (access.Has(PageAccess.User) && !user)
        {
            return false;
        }

        if (access.Has(PageAccess.Write) && !writable && (access.Has(PageAccess.User) || mode.WriteProtect))
        {
            return false;
        }

        return executable || !access.Has(PageAccess.Fetch);
    }

    private static bool HasReservedBits(ulong entry, int level, in PagingMode mode)
    {
        PageEntry bits = (PageEntry)entry;
        if ((entry & ReservedAddressBits) != 0 || (bits.Has(PageEntry.NoExecute) && !mode.NoExecuteEnabled))
        {
            return true;
        }

        return bits.Has(PageEntry.Large) && level switch
        {
            // Bit 12 of a large leaf is PAT; the address bits between it and the frame must be zero.
            TopLevel => true,
            3 => (entry & Paging.FrameMask & ~HugeFrameMask & ~(1UL << Paging.PageShift)) != 0,
            2 => (entry & Paging.FrameMask & ~LargeFrameMask & ~(1UL << Paging.PageShift)) != 0,
            _ => false,
        };
    }

    /// <summary>Marks an entry.</summary>
    /// <returns>Whether it was still the same, but for such marks.</returns>
    private static bool TrySetBits(ref ulong word, ulong entry, PageEntry bits, PageAccess access)
    {
        if (access.Has(PageAccess.Probe))
        {
            return true;
        }

        while ((entry & (ulong)bits) != (ulong)bits)
        {
            ulong found = Interlocked.CompareExchange(ref word, entry | (ulong)bits, entry);
            if (found == entry)
            {
                return true;
            }

            if (((found ^ entry) & ~(ulong)(PageEntry.Accessed | PageEntry.Dirty)) != 0)
            {
                return false;
            }

            entry = found;
        }

        return true;
    }
}
