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

    /// <summary>Offers the current root, if it is one. The page's entry, if there is one, was filled for the kernel: no user view has it.</summary>
    /// <param name="mode">The guest's paging mode.</param>
    /// <param name="virtualAddress">The page, one of the low half that only the kernel reaches.</param>
    internal void Offer(in PagingMode mode, ulong virtualAddress)
    {
        if (!PageWalk.TryPath(memory, mode.Cr3, virtualAddress, path) || !tlb.TryWatch(virtualAddress)
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

            page[VcpuPage.CheckedSlot(step)] = address;
            page[VcpuPage.CheckedSlot(step) + 1] = path[step].Entry;
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
