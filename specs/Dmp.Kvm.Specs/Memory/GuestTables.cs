using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.Memory;

/// <summary>Builds the guest's page tables in guest RAM from 1 MiB up.</summary>
internal sealed class GuestTables(GuestMemory memory)
{
    internal const ulong Root = 0x10_0000;
    internal const ulong TableBits = (ulong)(PageEntry.Present | PageEntry.Writable | PageEntry.User);

    private ulong next = Root + Paging.PageSize;

    /// <summary>The address of the entry of a level, making tables above it.</summary>
    internal GuestPhysicalAddress Slot(ulong address, int level)
    {
        ulong table = Root;
        for (int at = 4; at > level; at--)
        {
            ref ulong entry = ref memory.Word(SlotIn(table, address, at));
            if (entry == 0)
            {
                entry = next | TableBits;
                next += Paging.PageSize;
            }

            table = entry & Paging.FrameMask;
        }

        return SlotIn(table, address, level);
    }

    internal ref ulong Entry(ulong address, int level) => ref memory.Word(Slot(address, level));

    internal void Map(ulong address, int level, ulong entry) => Entry(address, level) = entry;

    private static GuestPhysicalAddress SlotIn(ulong table, ulong address, int level) =>
        new(table + ((ulong)Paging.Index(address, level) * Paging.EntrySize));
}
