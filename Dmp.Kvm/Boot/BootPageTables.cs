using System.Runtime.InteropServices;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>The page tables that the first instruction runs on: everything below 4 GiB, virtual equal to physical, 2 MiB pages.</summary>
internal static class BootPageTables
{
    private const int Directories = (int)(BootLayout.IdentityMapped / Paging.HugePageSize);
    private const PageEntry Table = PageEntry.Present | PageEntry.Writable;
    private const PageEntry Leaf = PageEntry.Present | PageEntry.Writable | PageEntry.Large;

    /// <summary>Writes them.</summary>
    public static void Write(IGuestRam ram)
    {
        GuestPhysicalAddress pml4 = BootLayout.PageTables;
        GuestPhysicalAddress pointers = pml4.Plus(Paging.PageSize);
        GuestPhysicalAddress directories = pointers.Plus(Paging.PageSize);

        Entries(ram, pml4)[0] = pointers.Value | (ulong)Table;
        Span<ulong> pointerEntries = Entries(ram, pointers);
        for (int directory = 0; directory < Directories; directory++)
        {
            GuestPhysicalAddress table = directories.Plus((ulong)directory * Paging.PageSize);
            pointerEntries[directory] = table.Value | (ulong)Table;
            Span<ulong> entries = Entries(ram, table);
            for (int i = 0; i < entries.Length; i++)
            {
                entries[i] = ((ulong)directory * Paging.HugePageSize) + ((ulong)i * Paging.LargePageSize) | (ulong)Leaf;
            }
        }
    }

    private static Span<ulong> Entries(IGuestRam ram, GuestPhysicalAddress table)
    {
        Span<byte> page = ram.Slice(table, Paging.PageSize);
        page.Clear();
        return MemoryMarshal.Cast<byte, ulong>(page);
    }
}
