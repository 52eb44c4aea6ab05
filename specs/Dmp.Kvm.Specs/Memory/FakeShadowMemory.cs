using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.Memory;

/// <summary>Shadow tables in an array, which insists on what a KVM that shadows them relies on.</summary>
internal sealed class FakeShadowMemory(int tables = 2048) : IShadowMemory
{
    private const ulong Rights = (ulong)(PageEntry.Writable | PageEntry.User);

    private readonly ulong[] entries = new ulong[tables * Paging.EntriesPerTable];

    public int Tables => tables;

    public ulong MachineBase => 0x10_0020_0000;

    internal List<int> Cleared { get; } = [];

    public ulong Get(int slot) => entries[slot];

    public void Set(int slot, ulong entry)
    {
        ulong old = entries[slot];
        if (old != 0)
        {
            Assert.Equal(old & Paging.FrameMask, entry & Paging.FrameMask);
            Assert.Equal(old & Rights, old & entry & Rights);
            Assert.True(entry >> 63 <= old >> 63, "fetch right taken away by Set");
        }

        entries[slot] = entry;
    }

    public void Clear(Span<int> slots)
    {
        Assert.NotEqual(0, slots.Length);
        slots.Sort();
        foreach (int slot in slots)
        {
            entries[slot] = 0;
            Cleared.Add(slot);
        }
    }
}
