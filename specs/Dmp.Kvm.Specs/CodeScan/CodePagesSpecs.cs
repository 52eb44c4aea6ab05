using System.Collections;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.CodeScan;

public sealed class CodePagesSpecs : IDisposable
{
    private const byte Hlt = 0xF4;
    private const ulong Address = 0xFFFF_FFFF_8100_0000;
    private const ulong Frame = 5;

    private readonly GuestMemory memory = GuestMemory.Create(8UL << 20);
    private readonly CodePages pages;
    private readonly byte[] original = new byte[Paging.PageSize];

    public CodePagesSpecs()
    {
        pages = new CodePages(memory);
        new Random(1).NextBytes(original);
        original.CopyTo(Page);
    }

    private Span<byte> Page => memory.Slice(new(Frame << Paging.PageShift), Paging.PageSize);

    public void Dispose() => memory.Dispose();

    [Fact(DisplayName = "Traps replace exactly the given bytes, and removal restores the page exactly")]
    public void Add_and_remove()
    {
        pages.Add(Frame, Address, [0, 7, 8, 4095], spill: 3);
        byte[] expected = [.. original];
        expected[0] = expected[7] = expected[8] = expected[4095] = Hlt;
        Assert.Equal(expected, Page.ToArray());
        Assert.True(pages.Contains(Frame));
        Assert.Equal(3, pages.Spill(Frame));
        Assert.True(pages.Remove(Frame, out _));
        Assert.Equal(original, Page.ToArray());
        Assert.False(pages.Contains(Frame));
        Assert.Equal((1, 1), (pages.Scans, pages.Restores));
    }

    [Fact(DisplayName = "A claimed frame is written by nobody and executed by nobody, until it is scanned")]
    public void Claim()
    {
        byte[] written = [1, 2, 3];
        Assert.True(pages.TryWrite(new(Frame << Paging.PageShift), written));
        written.CopyTo(original, 0);
        pages.Claim(Frame);
        Assert.False(pages.TryWrite(new(Frame << Paging.PageShift), [4]));
        Assert.True(pages.Contains(Frame));
        Assert.False(pages.MayExecute(Frame, Address));
        Assert.Equal(-1, pages.Spill(Frame));

        long before = pages.Generation;
        pages.Add(Frame, Address, [7], spill: 0);
        Assert.True(pages.MayExecute(Frame, Address));
        Assert.NotEqual(before, pages.Generation);
        Assert.True(pages.Remove(Frame, out _));
        Assert.Equal(original, Page.ToArray());
        Assert.True(pages.TryWrite(new(Frame << Paging.PageShift), [4]));
    }

    [Fact(DisplayName = "A closed frame is executed by nobody and patched by nobody, and is code until its bytes are back")]
    public void Close()
    {
        Assert.False(pages.Close(Frame));
        pages.Add(Frame, Address, [7], spill: 0);
        Assert.True(pages.Close(Frame));
        Assert.True(pages.Contains(Frame));
        Assert.False(pages.MayExecute(Frame, Address));
        Assert.False(pages.TryWrite(new(Frame << Paging.PageShift), [4]));
        Assert.Equal(Replacement.NotScanned, pages.TryReplace(Address, original.AsSpan(0, 5), new byte[5]));
        Assert.True(pages.Remove(Frame, out _));
        Assert.Equal(original, Page.ToArray());
    }

    [Fact(DisplayName = "Frames of code below one are found")]
    public void Below()
    {
        pages.Add(Frame, Address, [7], spill: 0);
        pages.Add(Frame + 2, Address + Paging.PageSize, [7], spill: 0);
        Assert.Empty(pages.FramesBelow(Frame));
        Assert.Equal([Frame], pages.FramesBelow(Frame + 2));
    }

    [Fact(DisplayName = "A frame that is code already is not trapped again")]
    public void Add_twice()
    {
        pages.Add(Frame, Address, [7], spill: 1);
        pages.Add(Frame, Address, [7, 9], spill: 2);
        Assert.Equal(1, pages.Spill(Frame));
        Assert.Equal(1, pages.Scans);
        Assert.True(pages.Remove(Frame, out _));
        Assert.Equal(original, Page.ToArray());
    }

    [Fact(DisplayName = "What a frame held is known when it has been given back, but not where nobody knew its instructions")]
    public void Held_before()
    {
        Assert.Null(pages.Prepare(Frame));
        pages.Add(Frame, Address, [7], spill: 0, new BitArray(Paging.PageSize, true));
        Assert.Null(pages.Prepare(Frame));
        Assert.True(pages.Remove(Frame, out _));
        Assert.NotNull(pages.Prepare(Frame));
        pages.AddCovered(Frame, Address);
        Assert.True(pages.Remove(Frame, out _));
        Assert.Null(pages.Prepare(Frame));
    }

    [Fact(DisplayName = "A frame that is no code is not restored and has no spill")]
    public void Unknown()
    {
        Assert.False(pages.Remove(Frame, out _));
        Assert.Equal(-1, pages.Spill(Frame));
        Assert.Equal(0, pages.Restores);
        byte[] read = new byte[16];
        Assert.False(pages.ReadOriginal(Frame, 4080, read));
        Assert.Equal(original[4080..], read);
    }

    [Theory(DisplayName = "Any part of a page reads as the guest wrote it, and says whether it begins with a trap")]
    [InlineData(0, 4096, true)]
    [InlineData(1, 15, false)]
    [InlineData(7, 1, true)]
    [InlineData(8, 2, true)]
    [InlineData(9, 0, false)]
    [InlineData(5, 2, false)]
    [InlineData(4095, 1, true)]
    public void Read_original(int offset, int length, bool trap)
    {
        pages.Add(Frame, Address, [0, 7, 8, 4095], spill: 0);
        byte[] read = new byte[length];
        Assert.Equal(trap, pages.ReadOriginal(Frame, offset, read));
        Assert.Equal(original.AsSpan(offset, length).ToArray(), read);
        Assert.Equal(Hlt, Page[7]);
    }

    [Fact(DisplayName = "Reading beyond the frame is refused")]
    public void Read_beyond() =>
        Assert.Throws<ArgumentOutOfRangeException>(() => pages.ReadOriginal(Frame, 4090, new byte[7]));

    [Theory(DisplayName = "A 2 MiB range has code when any of its frames has, with few and with many scanned frames")]
    [InlineData(0)]
    [InlineData(600)]
    public void Any_in_large_page(ulong others)
    {
        for (ulong frame = 0; frame < others; frame++)
        {
            pages.Add(1024 + frame, Address + ((ulong)frame * Paging.PageSize), [], spill: 0);
        }

        Assert.False(pages.AnyInLargePage(512));
        pages.Add(1023, Address, [], spill: 0);
        Assert.True(pages.AnyInLargePage(512));
        Assert.True(pages.AnyInLargePage(1023));
        Assert.False(pages.AnyInLargePage(511));
        Assert.Equal(others > 0, pages.AnyInLargePage(1024));
        _ = pages.Remove(1023, out _);
        Assert.False(pages.AnyInLargePage(700));
    }

    [Fact(DisplayName = "A frame outside RAM is refused")]
    public void Outside() => Assert.Throws<GuestMemoryException>(() => pages.Add(2048, Address, [0], spill: 0));
}
