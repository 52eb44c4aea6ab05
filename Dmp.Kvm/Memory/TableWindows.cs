using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Memory;

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
