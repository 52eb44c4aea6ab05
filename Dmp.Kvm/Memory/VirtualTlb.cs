using System.Numerics;
using System.Runtime.InteropServices;

namespace Dmp.Kvm.Memory;

/// <summary>A translation to put into the shadow tables.</summary>
internal readonly struct ShadowLeaf
{
    /// <summary>Machine address of the 4 KiB frame.</summary>
    internal ulong Frame { get; init; }

    /// <summary>Writes are allowed.</summary>
    internal bool Writable { get; init; }

    /// <summary>Instruction fetches are allowed.</summary>
    internal bool Executable { get; init; }

    /// <summary>U/S of the guest: user code may use it.</summary>
    internal bool User { get; init; }

    /// <summary>Survives a CR3 load.</summary>
    internal bool Global { get; init; }

    /// <summary>Level of the guest's leaf: 1, 2 or 3.</summary>
    internal int GuestLevel { get; init; }

    /// <summary>The whole 2 MiB range around it may be mapped with one entry.</summary>
    internal bool MayBeLarge { get; init; }
}

/// <summary>
/// A vCPU's virtual TLB: shadow page tables filled on faults and emptied exactly when the architecture says a TLB loses entries (AMD
/// APM vol. 2, 5.5; Intel SDM vol. 3, 4.10). Entries are tagged with the PCID, so a guest that uses PCIDs keeps several address spaces
/// cached. Each tag has two roots: the <i>kernel view</i> maps supervisor pages with U=1, the <i>user view</i> only what user code may
/// reach. The kernel half of all kernel views is shared. Belongs to the vCPU's thread.
/// </summary>
internal sealed class VirtualTlb
{
    private const int Tags = VcpuPage.RootTags;
    private const ulong KeepEntries = 1UL << 63;
    private const int RootsPerTag = 2;
    private const int ExposedTable = Tags * RootsPerTag;
    private const int FirstPooledTable = ExposedTable + 1;
    private const int KernelHalf = Paging.EntriesPerTable / 2;
    private const int TopLevel = 4;
    private const int LowWater = 8;
    private const int SharedByAllTags = -1;
    private const int NoTag = -2;
    private const int WordsPerTable = Paging.EntriesPerTable / 64;
    private const ulong SmallPagesPerLarge = Paging.LargePageSize / Paging.PageSize;

    private const ulong TableBits = (ulong)(PageEntry.Present | PageEntry.Writable | PageEntry.User | PageEntry.Accessed);
    private const ulong LeafBits = (ulong)(PageEntry.Present | PageEntry.User | PageEntry.Accessed | PageEntry.Dirty);

    private static readonly int ExposedSlot = Paging.Index(MachineLayout.ExposedBase, TopLevel);

    private readonly IShadowMemory memory;
    private readonly ReverseMap smallMap;
    private readonly ReverseMap largeMap;
    private readonly Tag[] tags = new Tag[Tags];
    private readonly Stack<int> free = new();
    private readonly sbyte[] owner;
    private readonly byte[] levels;
    private readonly byte[] fragmentLevel;
    private readonly bool[] listed;
    private readonly ulong[] present;
    private readonly List<int> kernelLeafTables = [];
    private readonly List<int> kernelNonGlobal = [];
    private readonly List<int> doomed = [];
    private readonly VcpuPage page;
    private long clock;

    // The tag that CheckedRoot is about.
    private int watched = NoTag;

    /// <summary>Creates an empty TLB with tag 0 (PCID 0) current.</summary>
    /// <param name="memory">The shadow tables.</param>
    /// <param name="frames">Frames of guest RAM, for the reverse map.</param>
    /// <param name="monitorSlot">The PML4 slot of the monitor.</param>
    /// <param name="monitorEntry">Its entry, in every root.</param>
    /// <param name="exposedEntry">
    /// The entry for the 1 GiB at <see cref="MachineLayout.ExposedBase"/>, in every kernel view; 0 for none.
    /// </param>
    /// <param name="page">Says which tag is in use: implants that load CR3 change it. Null for a TLB that no implant shares.</param>
    internal VirtualTlb(
        IShadowMemory memory, ulong frames, int monitorSlot, ulong monitorEntry, ulong exposedEntry = 0, VcpuPage? page = null)
    {
        this.memory = memory;
        this.page = page ?? new VcpuPage();
        int slots = memory.Tables * Paging.EntriesPerTable;
        smallMap = new ReverseMap(frames, slots);
        largeMap = new ReverseMap((frames / SmallPagesPerLarge) + 1, slots);
        owner = new sbyte[memory.Tables];
        levels = new byte[memory.Tables];
        fragmentLevel = new byte[memory.Tables];
        listed = new bool[memory.Tables];
        present = new ulong[memory.Tables * WordsPerTable];
        for (int index = 0; index < Tags; index++)
        {
            tags[index] = new Tag(index * RootsPerTag, (index * RootsPerTag) + 1);
            memory.Set(Slot(tags[index].KernelRoot, monitorSlot), monitorEntry);
            memory.Set(Slot(tags[index].UserRoot, monitorSlot), monitorEntry);
            owner[tags[index].KernelRoot] = owner[tags[index].UserRoot] = (sbyte)index;
            levels[tags[index].KernelRoot] = levels[tags[index].UserRoot] = TopLevel;
            memory.Set(Slot(tags[index].KernelRoot, ExposedSlot), TableEntry(ExposedTable));
        }

        levels[ExposedTable] = TopLevel - 1;
        owner[ExposedTable] = SharedByAllTags;
        memory.Set(Slot(ExposedTable, Paging.Index(MachineLayout.ExposedBase, TopLevel - 1)), exposedEntry);

        FreeAllTables();
        tags[0].InUse = true;
    }

    /// <summary>Entries put in since the start.</summary>
    internal long Fills { get; private set; }

    /// <summary>Entries taken out since the start.</summary>
    internal long Removals { get; private set; }

    /// <summary>How often everything was dropped because the tables were used up.</summary>
    internal long Resets { get; private set; }

    /// <summary>Machine address of the root to run with.</summary>
    internal ulong Root(bool userView) => RootOf(Current, userView);

    /// <summary>Whether the last CR3 load emptied the entries of the root it loaded; for whoever acts on it to reset.</summary>
    internal bool LoadedCold { get; set; }

    /// <summary>Whether a CR3 load has more to do than to change the root.</summary>
    internal bool LoadsSlowly => kernelNonGlobal.Count != 0;

    /// <summary>Remembers which CR3 value the current tag is for: implants may load that one, when it keeps its entries.</summary>
    /// <param name="cr3">The value, without bit 63; null without CR4.PCIDE.</param>
    internal void NoteRoot(ulong? cr3)
    {
        VcpuPageField key = VcpuPage.RootKey(Current);
        if (watched == Current && page[VcpuPageField.CheckedRoot] != cr3)
        {
            Unwatch();
        }

        page[key] = cr3 is { } value ? value | KeepEntries : 0;
        page[key + 1] = RootOf(Current, userView: false);
        page[key + 2] = RootOf(Current, userView: true);
    }

    /// <summary>
    /// Whether the current tag has no entry of its own but that of one page. If so, <see cref="VcpuPageField.CheckedRoot"/> is for it from now
    /// on, and taken back with its next entry, also a new one for the page. Entries that go do no harm. If not, it stays what it is.
    /// </summary>
    /// <param name="virtualAddress">An address of the page, in the low half.</param>
    internal bool TryWatch(ulong virtualAddress)
    {
        int slot = FindLeaf(tags[Current].KernelRoot, virtualAddress);
        if (slot >= 0 && levels[TableOf(slot)] != 1)
        {
            return false;
        }

        foreach (int table in tags[Current].LeafTables)
        {
            for (int word = 0; word < WordsPerTable; word++)
            {
                ulong bits = present[(table * WordsPerTable) + word];
                ulong allowed = slot >= 0 && slot / 64 == (table * WordsPerTable) + word ? 1UL << (slot % 64) : 0;
                if ((bits & ~allowed) != 0)
                {
                    return false;
                }
            }
        }

        Unwatch();
        watched = Current;
        return true;
    }

    private void Unwatch()
    {
        page[VcpuPageField.CheckedRoot] = 0;
        watched = NoTag;
    }

    /// <summary>Forgets what <see cref="NoteRoot"/> remembered, for all tags.</summary>
    internal void ForgetRoots()
    {
        Unwatch();
        for (int tag = 0; tag < Tags; tag++)
        {
            page[VcpuPage.RootKey(tag)] = 0;
        }
    }

    /// <summary>A CR3 load: makes a PCID current and, unless told to keep it, empties what a CR3 load empties.</summary>
    /// <param name="pcid">The PCID; 0 without CR4.PCIDE.</param>
    /// <param name="keep">Bit 63 of the new CR3 with CR4.PCIDE: entries of the PCID stay.</param>
    internal void Load(ushort pcid, bool keep)
    {
        // Kernel-half entries that are not global belong to one address space: they must not be seen from the next.
        DropNonGlobalKernel();
        tags[Current].LastUse = ++clock;
        int index = Find(pcid);
        if (index < 0)
        {
            index = Evict(pcid);
        }
        else if (!keep)
        {
            Flush(index);
        }

        LoadedCold = !keep;
        tags[index].LastUse = ++clock;
        Current = index;
    }

    private int Current
    {
        get => (int)page[VcpuPageField.CurrentTag];
        set => page[VcpuPageField.CurrentTag] = (ulong)value;
    }

    private ulong RootOf(int tag, bool userView) =>
        memory.MachineBase + ((ulong)(userView ? tags[tag].UserRoot : tags[tag].KernelRoot) * Paging.PageSize);

    /// <summary>INVLPG, and INVPCID of one address in the current PCID.</summary>
    internal void FlushPage(ulong virtualAddress)
    {
        FlushPage(Current, virtualAddress);
        for (int index = 0; index < Tags; index++)
        {
            // INVLPG takes global translations of all PCIDs with it.
            if (tags[index].HasGlobal && index != Current)
            {
                FlushPage(index, virtualAddress);
            }
        }
    }

    /// <summary>INVPCID type 0: one address in a PCID.</summary>
    internal void FlushPage(ushort pcid, ulong virtualAddress)
    {
        int index = Find(pcid);
        if (index >= 0)
        {
            FlushPage(index, virtualAddress);
        }
    }

    /// <summary>INVPCID type 1: all entries of a PCID but global ones.</summary>
    internal void FlushTag(ushort pcid)
    {
        DropNonGlobalKernel();
        int index = Find(pcid);
        if (index >= 0)
        {
            Flush(index);
        }
    }

    /// <summary>INVPCID type 3: all entries of all PCIDs but global ones.</summary>
    internal void FlushNonGlobal()
    {
        DropNonGlobalKernel();
        for (int index = 0; index < Tags; index++)
        {
            Flush(index);
        }
    }

    /// <summary>INVPCID type 2, and writes that change CR4.PGE and the like: everything.</summary>
    internal void FlushAll()
    {
        FlushNonGlobal();
        Drop(kernelLeafTables);
        kernelNonGlobal.Clear();
    }

    /// <summary>Puts a translation in.</summary>
    /// <param name="virtualAddress">An address of the page.</param>
    /// <param name="leaf">What to map there.</param>
    /// <param name="userView">Whether it is for the user view.</param>
    internal void Fill(ulong virtualAddress, in ShadowLeaf leaf, bool userView)
    {
        if (free.Count < LowWater)
        {
            Reset();
        }

        bool kernelHalf = Paging.Index(virtualAddress, TopLevel) >= KernelHalf;
        Tag tag = tags[Current];
        if (!kernelHalf && !leaf.User && !tag.Split)
        {
            Split(tag);
        }

        int table = userView ? tag.UserRoot : tag.KernelRoot;
        for (int level = TopLevel; level > 1; level--)
        {
            int slot = Slot(table, Paging.Index(virtualAddress, level));
            ulong entry = memory.Get(slot);
            bool isLeaf = level == 2 && ((PageEntry)entry).Has(PageEntry.Large);
            if (level == 2 && leaf.MayBeLarge && (entry == 0 || isLeaf))
            {
                PutLarge(slot, entry, leaf, kernelHalf && !userView);
                MarkFragments(table, leaf.GuestLevel, 2);
                return;
            }

            if (isLeaf)
            {
                doomed.Add(slot);
                ClearDoomed();
                entry = 0;
            }

            if (entry != 0 && IsForeign(entry))
            {
                throw new InvalidOperationException("the guest maps memory where the arena lies");
            }

            MarkFragments(table, leaf.GuestLevel, level);
            table = entry != 0 ? TableAt(entry) : Grow(tag, slot, level, kernelHalf && !userView, userView);
        }

        MarkFragments(table, leaf.GuestLevel, 1);
        PutSmall(Slot(table, Paging.Index(virtualAddress, 1)), leaf, kernelHalf && !userView);
    }

    /// <summary>The shadow entry for an address, 0 when there is none.</summary>
    internal ulong Lookup(ulong virtualAddress, bool userView)
    {
        int slot = FindLeaf(userView ? tags[Current].UserRoot : tags[Current].KernelRoot, virtualAddress);
        return slot < 0 ? 0 : memory.Get(slot);
    }

    /// <summary>Takes out every mapping of a frame through which it can be written (all of them, for the frame becomes code).</summary>
    internal void DropWritable(ulong frame) => DropFrame(frame, PageEntry.Writable);

    /// <summary>Takes out every mapping of a frame.</summary>
    internal void DropFrame(ulong frame) => DropFrame(frame, PageEntry.None);

    /// <summary>Visits the small leaf entries of the current tag's view and of the kernel half, for audits.</summary>
    internal void VisitLeaves(bool userView, Action<ulong, ulong, int> visit)
    {
        int root = userView ? tags[Current].UserRoot : tags[Current].KernelRoot;
        Visit(root, TopLevel, 0, visit);
    }

    private static int Slot(int table, int index) => (table * Paging.EntriesPerTable) + index;

    private static int TableOf(int slot) => slot / Paging.EntriesPerTable;

    private void DropFrame(ulong frame, PageEntry needed)
    {
        for (int slot = smallMap.First(frame); slot >= 0; slot = smallMap.Next(slot))
        {
            if (((PageEntry)memory.Get(slot) & needed) == needed)
            {
                doomed.Add(slot);
            }
        }

        for (int slot = largeMap.First(frame / SmallPagesPerLarge); slot >= 0; slot = largeMap.Next(slot))
        {
            if (((PageEntry)memory.Get(slot) & needed) == needed)
            {
                doomed.Add(slot);
            }
        }

        ClearDoomed();
    }

    private void PutLarge(int slot, ulong old, in ShadowLeaf leaf, bool shared)
    {
        ulong frame = leaf.Frame & ~(Paging.LargePageSize - 1);
        ulong entry = frame | LeafBits | (ulong)PageEntry.Large | Rights(leaf);
        Put(slot, old, entry, largeMap, frame / Paging.LargePageSize, shared, leaf.Global);
    }

    private void PutSmall(int slot, in ShadowLeaf leaf, bool shared)
    {
        ulong entry = leaf.Frame | LeafBits | Rights(leaf);
        Put(slot, memory.Get(slot), entry, smallMap, leaf.Frame >> Paging.PageShift, shared, leaf.Global);
    }

    private void Put(int slot, ulong old, ulong entry, ReverseMap map, ulong frame, bool shared, bool global)
    {
        if (old == entry)
        {
            return;
        }

        if (!shared && owner[TableOf(slot)] == watched)
        {
            Unwatch();
        }

        if (!shared && global)
        {
            tags[owner[TableOf(slot)]].HasGlobal = true;
        }

        if (old != 0)
        {
            bool widens = ((old ^ entry) & Paging.FrameMask) == 0
                && (entry & (ulong)PageEntry.Writable) >= (old & (ulong)PageEntry.Writable)
                && (entry & (ulong)PageEntry.NoExecute) <= (old & (ulong)PageEntry.NoExecute);
            if (widens)
            {
                memory.Set(slot, entry);
                NoteNonGlobal(slot, shared, global);
                Fills++;
                return;
            }

            doomed.Add(slot);
            ClearDoomed();
        }

        memory.Set(slot, entry);
        map.Link(frame, slot);
        int table = TableOf(slot);
        present[slot / 64] |= 1UL << (slot % 64);
        if (!listed[table])
        {
            listed[table] = true;
            (shared ? kernelLeafTables : tags[owner[table]].LeafTables).Add(table);
        }

        NoteNonGlobal(slot, shared, global);
        Fills++;
    }

    private void NoteNonGlobal(int slot, bool shared, bool global)
    {
        if (shared && !global)
        {
            kernelNonGlobal.Add(slot);
        }
    }

    private static ulong Rights(in ShadowLeaf leaf) =>
        (leaf.Writable ? (ulong)PageEntry.Writable : 0) | (leaf.Executable ? 0 : (ulong)PageEntry.NoExecute);

    private int TableAt(ulong entry) => (int)(((entry & Paging.FrameMask) - memory.MachineBase) / Paging.PageSize);

    private ulong TableEntry(int table) => (memory.MachineBase + ((ulong)table * Paging.PageSize)) | TableBits;

    private int Grow(Tag tag, int slot, int level, bool shared, bool userView)
    {
        int table = free.Pop();
        levels[table] = (byte)(level - 1);
        fragmentLevel[table] = 0;
        owner[table] = (sbyte)(shared ? SharedByAllTags : Current);
        ulong entry = TableEntry(table);
        memory.Set(slot, entry);
        if (level == TopLevel)
        {
            int index = slot % Paging.EntriesPerTable;
            if (shared)
            {
                foreach (Tag other in tags)
                {
                    memory.Set(Slot(other.KernelRoot, index), entry);
                }
            }
            else if (index < KernelHalf && !tag.Split)
            {
                memory.Set(Slot(userView ? tag.KernelRoot : tag.UserRoot, index), entry);
            }
        }

        return table;
    }

    /// <summary>Supervisor pages appear in the low half: from now on the two views of the tag differ there.</summary>
    private void Split(Tag tag)
    {
        for (int index = 0; index < KernelHalf; index++)
        {
            if (memory.Get(Slot(tag.UserRoot, index)) != 0)
            {
                doomed.Add(Slot(tag.UserRoot, index));
            }
        }

        ClearTableEntries();
        tag.Split = true;
    }

    private void Flush(int index)
    {
        Tag tag = tags[index];
        Drop(tag.LeafTables);
        tag.HasGlobal = false;
        if (!tag.Split)
        {
            return;
        }

        // Nothing is left that the views could differ in: they share their low half again.
        for (int slot = 0; slot < KernelHalf; slot++)
        {
            if (memory.Get(Slot(tag.UserRoot, slot)) != 0)
            {
                doomed.Add(Slot(tag.UserRoot, slot));
            }
        }

        ClearTableEntries();
        for (int slot = 0; slot < KernelHalf; slot++)
        {
            ulong entry = memory.Get(Slot(tag.KernelRoot, slot));
            if (entry != 0)
            {
                memory.Set(Slot(tag.UserRoot, slot), entry);
            }
        }

        tag.Split = false;
    }

    private void FlushPage(int index, ulong virtualAddress)
    {
        Tag tag = tags[index];
        DoomPage(tag.KernelRoot, virtualAddress);
        if (tag.Split || Paging.Index(virtualAddress, TopLevel) >= KernelHalf)
        {
            DoomPage(tag.UserRoot, virtualAddress);
        }

        ClearDoomed();
    }

    private void DoomPage(int root, ulong virtualAddress)
    {
        int table = root;
        for (int level = TopLevel; level >= 1; level--)
        {
            if (fragmentLevel[table] > level && level < TopLevel)
            {
                // The guest's page is larger than this table's range per entry: all of its pieces go.
                DoomSubtree(table, level);
                return;
            }

            int slot = Slot(table, Paging.Index(virtualAddress, level));
            ulong entry = memory.Get(slot);
            if (entry == 0)
            {
                return;
            }

            if (level == 1 || (level == 2 && ((PageEntry)entry).Has(PageEntry.Large)))
            {
                doomed.Add(slot);
                return;
            }

            if (IsForeign(entry))
            {
                return;
            }

            table = TableAt(entry);
        }
    }

    private void DoomSubtree(int table, int level)
    {
        for (int index = 0; index < Paging.EntriesPerTable; index++)
        {
            ulong entry = memory.Get(Slot(table, index));
            if (entry == 0)
            {
                continue;
            }

            if (level == 1 || ((PageEntry)entry).Has(PageEntry.Large))
            {
                doomed.Add(Slot(table, index));
            }
            else if (!IsForeign(entry))
            {
                DoomSubtree(TableAt(entry), level - 1);
            }
        }
    }

    /// <summary>Remembers that a table holds pieces of a guest page that is larger than what one of its entries covers.</summary>
    private void MarkFragments(int table, int guestLevel, int level)
    {
        if (guestLevel > level && fragmentLevel[table] < guestLevel)
        {
            fragmentLevel[table] = (byte)guestLevel;
        }
    }

    private void DropNonGlobalKernel()
    {
        if (kernelNonGlobal.Count == 0)
        {
            return;
        }

        foreach (int slot in kernelNonGlobal)
        {
            // A slot may have been dropped, and even filled with something global, since it was noted; dropping more is harmless.
            // But it may also have been noted twice, and unlinking it twice would lose other mappings of its frame.
            if (IsLeafPresent(slot))
            {
                present[slot / 64] &= ~(1UL << (slot % 64));
                doomed.Add(slot);
            }
        }

        kernelNonGlobal.Clear();
        ClearDoomed();
    }

    private bool IsLeafPresent(int slot) => (present[slot / 64] & (1UL << (slot % 64))) != 0;

    private void Drop(List<int> tables)
    {
        foreach (int table in tables)
        {
            listed[table] = false;
            for (int word = 0; word < WordsPerTable; word++)
            {
                for (ulong bits = present[(table * WordsPerTable) + word]; bits != 0; bits &= bits - 1)
                {
                    doomed.Add(Slot(table, (word * 64) + BitOperations.TrailingZeroCount(bits)));
                }
            }
        }

        tables.Clear();
        ClearDoomed();
    }

    /// <summary>Takes out the leaf entries in <see cref="doomed"/>.</summary>
    private void ClearDoomed()
    {
        if (doomed.Count == 0)
        {
            return;
        }

        foreach (int slot in doomed)
        {
            ulong entry = memory.Get(slot);
            if (((PageEntry)entry).Has(PageEntry.Large) && levels[TableOf(slot)] == 2)
            {
                largeMap.Unlink((entry & Paging.FrameMask) / Paging.LargePageSize, slot);
            }
            else
            {
                smallMap.Unlink((entry & Paging.FrameMask) >> Paging.PageShift, slot);
            }

            present[slot / 64] &= ~(1UL << (slot % 64));
        }

        Removals += doomed.Count;
        ClearTableEntries();
    }

    private void ClearTableEntries()
    {
        if (doomed.Count != 0)
        {
            memory.Clear(CollectionsMarshal.AsSpan(doomed));
            doomed.Clear();
        }
    }

    private int Find(ushort pcid)
    {
        for (int index = 0; index < Tags; index++)
        {
            if (tags[index].InUse && tags[index].Pcid == pcid)
            {
                return index;
            }
        }

        return -1;
    }

    private int Evict(ushort pcid)
    {
        int oldest = 0;
        for (int index = 0; index < Tags; index++)
        {
            if (!tags[index].InUse)
            {
                oldest = index;
                break;
            }

            if (tags[index].LastUse < tags[oldest].LastUse)
            {
                oldest = index;
            }
        }

        Flush(oldest);
        page[VcpuPage.RootKey(oldest)] = 0;
        if (watched == oldest)
        {
            Unwatch();
        }

        tags[oldest].Pcid = pcid;
        tags[oldest].InUse = true;
        return oldest;
    }

    /// <summary>The tables are used up: empties everything and starts again.</summary>
    private void Reset()
    {
        Resets++;
        FlushAll();
        for (int table = 0; table < memory.Tables; table++)
        {
            bool isFixed = table < FirstPooledTable;
            for (int index = 0; index < Paging.EntriesPerTable; index++)
            {
                ulong entry = memory.Get(Slot(table, index));
                if (entry != 0 && !(isFixed && (IsForeign(entry) || TableAt(entry) == ExposedTable)))
                {
                    doomed.Add(Slot(table, index));
                }
            }
        }

        ClearTableEntries();
        FreeAllTables();
    }

    /// <summary>Whether an entry of an upper table points outside the pool: to the monitor, or to what it exposes.</summary>
    private bool IsForeign(ulong entry) =>
        (entry & Paging.FrameMask) - memory.MachineBase >= (ulong)memory.Tables * Paging.PageSize;

    private void FreeAllTables()
    {
        free.Clear();
        for (int table = memory.Tables - 1; table >= FirstPooledTable; table--)
        {
            free.Push(table);
        }
    }

    private int FindLeaf(int root, ulong virtualAddress)
    {
        int table = root;
        for (int level = TopLevel; level >= 1; level--)
        {
            int slot = Slot(table, Paging.Index(virtualAddress, level));
            ulong entry = memory.Get(slot);
            if (entry == 0)
            {
                return -1;
            }

            if (level == 1 || (level == 2 && ((PageEntry)entry).Has(PageEntry.Large)))
            {
                return slot;
            }

            if (IsForeign(entry))
            {
                return -1;
            }

            table = TableAt(entry);
        }

        return -1;
    }

    private void Visit(int table, int level, ulong prefix, Action<ulong, ulong, int> visit)
    {
        for (int index = 0; index < Paging.EntriesPerTable; index++)
        {
            ulong entry = memory.Get(Slot(table, index));
            bool isLeaf = level == 1 || (level == 2 && ((PageEntry)entry).Has(PageEntry.Large));
            if (entry == 0 || (!isLeaf && IsForeign(entry)))
            {
                continue;
            }

            ulong address = prefix | ((ulong)index << Paging.LevelShift(level));
            if (level == TopLevel && index >= KernelHalf)
            {
                address |= ulong.MaxValue << (Paging.LevelShift(TopLevel) + 9);
            }

            if (isLeaf)
            {
                visit(address, entry, level);
            }
            else
            {
                Visit(TableAt(entry), level - 1, address, visit);
            }
        }
    }

    private sealed class Tag(int kernelRoot, int userRoot)
    {
        internal readonly int KernelRoot = kernelRoot;
        internal readonly int UserRoot = userRoot;
        internal readonly List<int> LeafTables = [];
        internal ushort Pcid;
        internal bool InUse;
        internal bool Split;
        internal bool HasGlobal;
        internal long LastUse;
    }
}
