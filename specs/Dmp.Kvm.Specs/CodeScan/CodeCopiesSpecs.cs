using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Memory;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.CodeScan;

/// <summary>Code that the guest copies while some of its bytes are ours.</summary>
public sealed class CodeCopiesSpecs : IDisposable
{
    private const ulong Address = 0xFFFF_FFFF_8100_0000;
    private const ulong Source = 5;
    private const ulong Copy = 9;
    private const int Context = 16;
    private const byte Nop = 0x90;

    private readonly GuestMemory memory = GuestMemory.Create(8UL << 20);

    public void Dispose() => memory.Dispose();

    [Property(
        DisplayName = "A copied stretch gets back what was replaced in it, where sixteen bytes before or behind were copied too; nothing"
            + " outside of it changes",
        MaxTest = 300)]
    public void Stretches(int seed)
    {
        Random random = new(seed);
        (byte[] guest, List<(int Offset, int Length)> replaced) = Load(random);
        byte[] running = Page(Source).ToArray();
        int from = random.Next(Paging.PageSize - 200);
        int length = random.Next(Context, 200);
        int to = random.Next(Paging.PageSize - length);
        Span<byte> copy = Page(Copy);
        random.NextBytes(copy);
        if (to + length < copy.Length)
        {
            // The copy ends where it ends.
            copy[to + length] = (byte)~running[from + length];
        }

        byte[] around = copy.ToArray();
        running.AsSpan(from, length).CopyTo(copy[to..]);

        _ = Pages.Prepare(Copy);

        byte[] after = Page(Copy).ToArray();
        Assert.Equal(around[..to], after[..to]);
        Assert.Equal(around[(to + length)..], after[(to + length)..]);
        byte[] expected = running[from..(from + length)];
        foreach ((int offset, int size) in replaced)
        {
            int at = offset - from;
            bool known = at >= 0 && (at + Context <= length || (at >= Context && at < length));
            if (known)
            {
                guest.AsSpan(offset, Math.Min(size, length - at)).CopyTo(expected.AsSpan(at));
            }
        }

        Assert.Equal(Convert.ToHexString(expected), Convert.ToHexString(after.AsSpan(to, length)));
    }

    [Fact(DisplayName = "A patch that was there when its page was scanned is known as a whole, though its first byte was trapped")]
    public void Scanned_with_the_patch()
    {
        Random random = new(7);
        byte[] guest = new byte[Paging.PageSize];
        random.NextBytes(guest);
        guest.CopyTo(Page(Source));
        Pages.Patches = new AtScan(() => Assert.Equal(
            Replacement.Done, Pages.TryReplace(Address + 100, guest.AsSpan(100, 5), [0xE9, 1, 2, 3, 4])));
        Pages.Add(Source, Address, [100, 300], spill: 0);
        Page(Source).CopyTo(Page(Copy));
        _ = Pages.Prepare(Copy);
        Assert.Equal(guest, Page(Copy).ToArray());
    }

    [Fact(DisplayName = "What was replaced close to a patch is known after the patch is made, and after it is taken back")]
    public void Neighbours()
    {
        Random random = new(8);
        byte[] guest = new byte[Paging.PageSize];
        random.NextBytes(guest);
        guest.CopyTo(Page(Source));

        // Neither trap has sixteen bytes before or behind without one of the patches.
        Pages.Add(Source, Address, [110, 130], spill: 0);
        foreach (int offset in (int[])[100, 120, 140])
        {
            Assert.Equal(
                Replacement.Done, Pages.TryReplace(Address + (ulong)offset, guest.AsSpan(offset, 5), [0xE9, 1, 2, 3, (byte)offset]));
        }

        Expect(guest);
        Assert.True(Pages.TryRestore(Address + 120, guest.AsSpan(120, 5), [2]));
        Expect(guest);

        void Expect(byte[] original)
        {
            Page(Source).CopyTo(Page(Copy));
            _ = Pages.Prepare(Copy);
            Assert.Equal(original, Page(Copy).ToArray());
        }
    }

    [Fact(DisplayName = "Bytes of the guest's own behind a short copy stay, however long the window was that the copy was cut from")]
    public void Cut_off()
    {
        byte[] guest = new byte[Paging.PageSize];
        new Random(9).NextBytes(guest);
        guest.CopyTo(Page(Source));
        Pages.Add(Source, Address, [], spill: 0);
        byte[] jump = new byte[40];
        jump.AsSpan().Fill(0xF4);
        new byte[] { 0xE9, 1, 2, 3, 4 }.CopyTo(jump, 0);
        Assert.Equal(Replacement.Done, Pages.TryReplace(Address + 100, guest.AsSpan(100, 40), jump));
        Span<byte> copy = Page(Copy);
        copy.Fill(Nop);
        Page(Source).Slice(80, 20 + 18).CopyTo(copy[500..]);
        _ = Pages.Prepare(Copy);
        Assert.Equal(guest[80..118], copy.Slice(500, 38).ToArray());
        Assert.False(copy[538..].ContainsAnyExcept(Nop));
    }

    [Fact(DisplayName = "Loaded code that the guest did not copy is left alone")]
    public void Original_text()
    {
        Pages.OriginalText = (Copy, Copy + 1);
        _ = Load(new Random(3));
        Page(Source).CopyTo(Page(Copy));
        _ = Pages.Prepare(Copy);
        Assert.Equal(Page(Source).ToArray(), Page(Copy).ToArray());
    }

    private CodePages Pages => field ??= new CodePages(memory);

    private Span<byte> Page(ulong frame) => memory.Slice(new(frame << Paging.PageShift), Paging.PageSize);

    /// <summary>A random page with traps and patches, none inside another; FsCheck makes one object for all runs.</summary>
    private (byte[] Guest, List<(int Offset, int Length)> Replaced) Load(Random random)
    {
        _ = Pages.Remove(Source, out _);
        byte[] guest = new byte[Paging.PageSize];
        random.NextBytes(guest);
        guest.CopyTo(Page(Source));
        List<(int Offset, int Length)> replaced = [];
        for (int offset = random.Next(20); offset + 48 < guest.Length; offset += random.Next(1, 90))
        {
            int length = random.Next(2) == 0 ? 1 : random.Next(5, 49);
            replaced.Add((offset, length));
            offset += length;
        }

        Pages.Add(Source, Address, [.. replaced.Where(one => one.Length == 1).Select(one => one.Offset)], spill: 0);
        foreach ((int offset, int length) in replaced.Where(one => one.Length > 1).OrderBy(_ => random.Next()))
        {
            byte[] jump = new byte[length];
            jump.AsSpan().Fill(0xF4);
            jump[0] = 0xE9;
            random.NextBytes(jump.AsSpan(1, 4));
            Assert.Equal(Replacement.Done, Pages.TryReplace(Address + (ulong)offset, guest.AsSpan(offset, length), jump));
        }

        return (guest, replaced);
    }

    private sealed class AtScan(Action scanned) : IPagePatches
    {
        public void Scanned(ulong page) => scanned();

        public void Released(ulong page)
        {
        }
    }
}
