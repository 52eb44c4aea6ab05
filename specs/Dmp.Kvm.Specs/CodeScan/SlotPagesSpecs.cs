using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.CodeScan;

/// <summary>Pages of short pieces of code with gaps between them: nothing of them runs as it is before it was seen to be code.</summary>
public sealed class SlotPagesSpecs : IDisposable
{
    private const byte Hlt = 0xF4;
    private const byte Int3 = 0xCC;
    private const byte Pushf = 0x9C;
    private const int SlotSize = 15;
    private const ulong Address = 0xFFFF_FFFF_C000_0000;
    private const ulong Frame = 5;

    private readonly GuestMemory memory = GuestMemory.Create(8UL << 20);
    private readonly CodeScanner scanner = new();
    private readonly CodePages pages;

    public SlotPagesSpecs() => pages = new CodePages(memory);

    private Span<byte> Page => memory.Slice(new(Frame << Paging.PageShift), Paging.PageSize);

    public void Dispose() => memory.Dispose();

    [Theory(DisplayName = "A page of slots is known by its gaps; functions, and data behind a function, are none")]
    [InlineData("55 CC 0000000000000000000000000000 48C7C000000000 CC", true)]
    [InlineData("9C CC 0000000000000000000000000000 90 CC", true)]
    [InlineData("4889E5 E900000000 00000000000000 55 CC", true)]
    [InlineData("55 CC", false)]
    [InlineData("55 4889E5 B800000000 5D C3 CCCCCC B800000000 C3", false)]
    [InlineData("488D0424 488D0424 488D0424 488D0424 488D0424 488D0424 C3 CC 000000 C099B382FFFFFFFF", false)]
    [InlineData("488D0424 488D0424 488D0424 488D0424 488D0424 488D0424 C3 000000 488D0424 488D0424 E900000000 000000 90", true)]
    public void Recognition(string code, bool slots)
    {
        byte[] page = new byte[Paging.PageSize];
        Convert.FromHexString(code.Replace(" ", "", StringComparison.Ordinal)).CopyTo(page, 0);
        Assert.Equal(slots, scanner.HasSlots(page));
    }

    [Theory(DisplayName = "Whatever the gaps hold, a slot that runs has its silent instruction trapped and the others' bytes stay covered")]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void Revealed(int seed)
    {
        byte[] original = Slots(seed);
        original.CopyTo(Page);
        pages.AddCovered(Frame, Address);
        Assert.All(Page.ToArray(), value => Assert.Equal(Hlt, value));

        // Slots of pushf; int3 and of mov rbp, rsp; int3 take turns.
        Assert.True(pages.Reveal(Frame, 0, scanner));
        Assert.True(pages.Reveal(Frame, 7 * SlotSize, scanner));
        Assert.Equal([Hlt, Int3, Hlt], Page[..3].ToArray());
        Assert.Equal([Hlt, 0x48, 0x89, 0xE5, Int3, Hlt], Page.Slice((7 * SlotSize) - 1, 6).ToArray());
        Assert.Equal(Paging.PageSize - 5, Page.Count(Hlt));

        byte[] read = new byte[Paging.PageSize];
        Assert.True(pages.ReadOriginal(Frame, 0, read));
        Assert.Equal(original, read);
        Assert.True(pages.Remove(Frame, out _));
        Assert.Equal(original, Page.ToArray());
    }

    [Fact(DisplayName = "What was revealed once is revealed; a frame that is not covered has nothing to reveal")]
    public void Again()
    {
        Slots(1).CopyTo(Page);
        Assert.False(pages.Reveal(Frame, 0, scanner));
        pages.AddCovered(Frame, Address);
        Assert.True(pages.Reveal(Frame, SlotSize, scanner));
        byte[] once = Page.ToArray();
        Assert.True(pages.Reveal(Frame, SlotSize, scanner));
        Assert.Equal(once, Page.ToArray());
    }

    private static byte[] Slots(int seed)
    {
        byte[] page = new byte[Paging.PageSize];
        new Random(seed).NextBytes(page);
        for (int slot = 0; (slot + 1) * SlotSize <= page.Length; slot++)
        {
            byte[] code = slot % 2 == 0 ? [Pushf, Int3] : [0x48, 0x89, 0xE5, Int3];
            code.CopyTo(page, slot * SlotSize);
        }

        return page;
    }
}
