using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Memory;

/// <summary>
/// The root that implants may load although the load empties its entries: the virtual TLB has one page's entry at most under it, and the
/// four entries of the guest's tables that lead to the page are what they were when it was filled. An implant compares them, in a view of
/// the guest's tables that it may read; if they are the same, an entry that was dropped and filled again would be the same one too, and
/// so the load need not exit. Linux writes its own text through such an address space, several times in a row to the same page.
/// </summary>
/// <remarks>The vCPU's thread.</remarks>
/// <param name="memory">Guest RAM.</param>
/// <param name="tlb">The virtual TLB, which takes the root back when another entry comes.</param>
/// <param name="page">What the implants read.</param>
/// <param name="windows">Lets them read the guest's tables.</param>
internal sealed class CheckedRoot(GuestMemory memory, VirtualTlb tlb, VcpuPage page, TableWindows windows)
{
    private readonly PathEntry[] path = new PathEntry[PageWalk.Levels];

    /// <summary>Offers the current root, if it is one.</summary>
    /// <param name="mode">The guest's paging mode.</param>
    /// <param name="virtualAddress">The page, one of the low half that only the kernel reaches.</param>
    internal void Offer(in PagingMode mode, ulong virtualAddress)
    {
        if (!tlb.TryWatch(virtualAddress) || !PageWalk.TryPath(memory, mode.Cr3, virtualAddress, path)
            || !IsWhatTheTablesSay(tlb.Lookup(virtualAddress, userView: false)))
        {
            return;
        }

        for (int step = 0; step < path.Length; step++)
        {
            if (!windows.TryOpen(path[step].Slot, out ulong address))
            {
                return;
            }

            page[VcpuPage.CheckedEntry(step)] = address;
            page[VcpuPage.CheckedEntry(step) + 1] = path[step].Entry;
        }

        page[VcpuPageField.CheckedRoot] = mode.Cr3;
    }

    /// <summary>Whether a shadow entry is one that the path allows: another vCPU may have changed the tables since it was filled.</summary>
    private bool IsWhatTheTablesSay(ulong entry)
    {
        if (entry == 0)
        {
            return true;
        }

        PageEntry shadow = (PageEntry)entry;
        PathEntry leaf = path[^1];
        bool writable = ((PageEntry)leaf.Entry).Has(PageEntry.Dirty);
        bool executable = true;
        foreach (PathEntry step in path)
        {
            writable &= ((PageEntry)step.Entry).Has(PageEntry.Writable);
            executable &= !((PageEntry)step.Entry).Has(PageEntry.NoExecute);
        }

        return memory.TryToMachine(new GuestPhysicalAddress(leaf.Entry & Paging.FrameMask), out MachineAddress machine)
            && machine.Value == (entry & Paging.FrameMask)
            && (writable || !shadow.Has(PageEntry.Writable))
            && (executable || shadow.Has(PageEntry.NoExecute));
    }
}

/// <summary>
/// Pages of the guest's own tables as a vCPU's implants may read them. A window stays open: a frame has the same one for as long as the
/// vCPU lives, and when there are no more, later frames have none.
/// </summary>
/// <param name="memory">Guest RAM.</param>
/// <param name="monitor">The monitor region, with the vCPU's table of them.</param>
/// <param name="vcpu">Index of the vCPU.</param>
internal sealed class TableWindows(GuestMemory memory, MappedMemory monitor, int vcpu)
{
    private const ulong LeafBits =
        (ulong)(PageEntry.Present | PageEntry.User | PageEntry.Accessed | PageEntry.NoExecute);

    private readonly Dictionary<ulong, ulong> open = [];

    /// <summary>Where implants read an entry.</summary>
    /// <param name="slot">The entry.</param>
    /// <param name="address">Its address for them.</param>
    /// <returns>Whether there is a window for it.</returns>
    internal bool TryOpen(GuestPhysicalAddress slot, out ulong address)
    {
        if (!open.TryGetValue(slot.Frame, out ulong window))
        {
            if (open.Count == MachineLayout.TableWindows || !memory.TryToMachine(slot, out MachineAddress machine))
            {
                address = 0;
                return false;
            }

            window = MachineLayout.TableWindowsAddress + ((ulong)open.Count * Paging.PageSize);
            open.Add(slot.Frame, window);

            // It was absent: that is seen without code in the VM, and no TLB has it.
            ulong table = MachineLayout.VcpuBlock(vcpu) + MachineLayout.ExposedPtOffset;
            Volatile.Write(
                ref monitor.Word(table + ((ulong)Paging.Index(window, 1) * Paging.EntrySize)),
                (machine.Value & Paging.FrameMask) | LeafBits);
        }

        address = window + (slot.Value & Paging.PageOffsetMask);
        return true;
    }
}
