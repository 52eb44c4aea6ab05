using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>Reads the arena as a processor would: through its page tables.</summary>
internal static class ArenaReader
{
    internal static byte[] Read(MappedMemory monitor, ulong address, int length)
    {
        ulong table = MachineLayout.ArenaTablesOffset
            + ((address - MachineLayout.ArenaBase) / Paging.LargePageSize * Paging.PageSize);
        ulong entry = monitor.Word(table + ((ulong)Paging.Index(address, 1) * Paging.EntrySize));
        Assert.Equal(
            PageEntry.Present | PageEntry.User, (PageEntry)entry & (PageEntry.Present | PageEntry.User | PageEntry.Writable));
        ulong frame = (entry & Paging.FrameMask) - MachineLayout.MonitorMachineBase;
        return monitor.Slice(frame + (address & Paging.PageOffsetMask), length).ToArray();
    }
}
