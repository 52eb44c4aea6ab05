using Dmp.Kvm.Interop;
using Dmp.Kvm.Locking;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Patching;

/// <summary>
/// Memory for implants, executable in every kernel view. Its address space is far larger than its memory, so that an implant can lie
/// where the bytes of the jump to it are the ones that are wanted. Memory is never given back while the machine lives: a vCPU or a saved
/// context may still lead there. Any thread.
/// </summary>
internal sealed class Arena(MappedMemory monitor)
{
    private const ulong LeafEntry = (ulong)(PageEntry.Present | PageEntry.User | PageEntry.Accessed);

    private readonly OrderedLock sync = new(LockRank.Arena);
    private readonly Dictionary<ulong, Page> pages = []; // Under sync.

    /// <summary>Pages of memory in use.</summary>
    internal int PagesInUse
    {
        get
        {
            using (sync.Enter())
            {
                return pages.Count;
            }
        }
    }

    /// <summary>Reserves memory for an implant.</summary>
    /// <param name="origin">Address that the jump's displacement counts from: the end of the jump.</param>
    /// <param name="constraint">Which displacements are wanted.</param>
    /// <param name="length">Bytes of the implant.</param>
    /// <param name="address">Where it is to lie.</param>
    /// <returns>Whether there is room.</returns>
    internal bool TryReserve(ulong origin, DisplacementConstraint constraint, int length, out ulong address)
    {
        using (sync.Enter())
        {
            foreach ((ulong start, Page page) in pages)
            {
                if (page.Free >= length && TryFind(page, start - origin, constraint, length, out int offset))
                {
                    page.Take(offset, length);
                    address = start + (ulong)offset;
                    return true;
                }
            }

            ulong next = MachineLayout.ArenaBase;
            while (pages.Count < MachineLayout.ArenaFrames && constraint.TryFindNext(next - origin, out ulong wanted))
            {
                next = (origin + wanted) & ~Paging.PageOffsetMask;
                if (next - MachineLayout.ArenaBase >= MachineLayout.ArenaSize)
                {
                    break;
                }

                if (!pages.ContainsKey(next) && TryFind(page: null, next - origin, constraint, length, out int offset))
                {
                    Page page = new(pages.Count);
                    page.Take(offset, length);
                    Map(next, page);
                    address = next + (ulong)offset;
                    return true;
                }

                next += Paging.PageSize;
            }
        }

        address = 0;
        return false;
    }

    /// <summary>Takes memory at an address that is known beforehand.</summary>
    internal void Place(ulong address, int length)
    {
        ulong start = address & ~Paging.PageOffsetMask;
        using (sync.Enter())
        {
            Page page = pages.GetValueOrDefault(start) ?? new Page(pages.Count);
            page.Take((int)(address - start), length);
            Map(start, page);
        }
    }

    /// <summary>Writes an implant to memory that was reserved for it.</summary>
    internal void Write(ulong address, ReadOnlySpan<byte> code)
    {
        ulong start = address & ~Paging.PageOffsetMask;
        using (sync.Enter())
        {
            code.CopyTo(monitor.Slice(FrameOffset(pages[start].Frame) + (address - start), code.Length));
        }
    }

    /// <summary>Finds free memory in a page where the displacements to it are wanted ones.</summary>
    /// <param name="page">The page; null for one that is all free.</param>
    /// <param name="displacement">Displacement to its first byte.</param>
    /// <param name="constraint">Which displacements are wanted.</param>
    /// <param name="length">Bytes.</param>
    /// <param name="offset">Where in the page.</param>
    private static bool TryFind(Page? page, ulong displacement, DisplacementConstraint constraint, int length, out int offset)
    {
        offset = 0;
        while (offset + length <= Paging.PageSize
            && constraint.TryFindNext(displacement + (ulong)offset, out ulong wanted)
            && wanted - displacement + (ulong)length <= Paging.PageSize)
        {
            offset = (int)(wanted - displacement);
            if (page is null || page.IsFree(offset, length, out int next))
            {
                return true;
            }

            offset = next;
        }

        return false;
    }

    private void Map(ulong start, Page page)
    {
        if (pages.TryAdd(start, page))
        {
            monitor.Slice(FrameOffset(page.Frame), Paging.PageSize).Fill(CodeScan.CodePages.Trap);
            ulong table = MachineLayout.ArenaTablesOffset
                + ((start - MachineLayout.ArenaBase) / Paging.LargePageSize * Paging.PageSize);
            ulong slot = table + ((ulong)Paging.Index(start, 1) * Paging.EntrySize);
            Volatile.Write(
                ref monitor.Word(slot), (MachineLayout.MonitorMachineBase + FrameOffset(page.Frame)) | LeafEntry);
        }
    }

    private static ulong FrameOffset(int frame) => MachineLayout.ArenaFramesOffset + ((ulong)frame * Paging.PageSize);

    private sealed class Page(int frame)
    {
        private readonly bool[] taken = new bool[Paging.PageSize];

        internal int Frame => frame;

        internal int Free { get; private set; } = Paging.PageSize;

        /// <summary>Whether a range is free; if not, where to look next.</summary>
        internal bool IsFree(int offset, int length, out int next)
        {
            int last = taken.AsSpan(offset, length).LastIndexOf(true);
            next = offset + last + 1;
            return last < 0;
        }

        internal void Take(int offset, int length)
        {
            taken.AsSpan(offset, length).Fill(true);
            Free -= length;
        }
    }
}
