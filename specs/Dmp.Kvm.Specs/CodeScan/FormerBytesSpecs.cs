using System.Collections;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Memory;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.CodeScan;

/// <summary>A guest that reads ours in its own text, and writes it back there when something else stands there, or nothing.</summary>
public sealed class FormerBytesSpecs : IDisposable
{
    private const ulong Frame = 0x10;
    private const ulong Address = 0xFFFF_FFFF_8100_0000;
    private const byte Breakpoint = 0xCC;
    private const byte NearJump = 0xE9;

    private readonly GuestMemory memory = GuestMemory.Create(Paging.LargePageSize);

    public void Dispose() => memory.Dispose();

    private Span<byte> Page => memory.Slice(new(Frame << Paging.PageShift), Paging.PageSize);

    [Fact(DisplayName = "The first byte that a probe kept of a patch, and the others that it kept of the guest's, are the guest's instruction")]
    public void Probe()
    {
        CodePages pages = Pages();
        byte[] code = [0x9C, 0x58, 0x0F, 0x1F, 0x40, 0x00];
        Load(pages, code, []);
        byte[] patch = [NearJump, 1, 2, 3, 4, CodePages.Trap];
        Assert.Equal(Replacement.Done, pages.TryReplace(Address + 100, code, patch));
        byte kept = Page[100];
        Assert.True(pages.TryRestore(Address + 100, code, [0]));
        Assert.True(pages.Remove(Frame, out _));
        Page[100] = kept;
        _ = pages.Prepare(Frame);
        Assert.Equal(code, Page.Slice(100, code.Length).ToArray());
    }

    [Property(MaxTest = 300, DisplayName = "Any mixture of the guest's bytes and of any that were ours there is the guest's, behind its breakpoint too")]
    public void Mixtures(int seed)
    {
        var random = new Random(seed);
        CodePages pages = Pages();
        byte[] code = new byte[random.Next(5, 20)];
        random.NextBytes(code);
        code[0] = 0x9C;
        Load(pages, code, random.Next(2) == 0 ? [0] : []);
        List<byte[]> ours = [];
        for (int times = random.Next(1, 4); times > 0; times--)
        {
            byte[] patch = new byte[code.Length];
            patch.AsSpan().Fill(CodePages.Trap);
            patch[0] = NearJump;
            random.NextBytes(patch.AsSpan(1, 4));
            Assert.Equal(Replacement.Done, pages.TryReplace(Address + 100, code, patch));
            ours.Add(patch);
            if (times > 1 || random.Next(2) == 0)
            {
                Assert.True(pages.TryRestore(Address + 100, code, random.Next(2) == 0 ? [0] : []));
            }
        }

        Assert.True(pages.Remove(Frame, out _));
        Assert.Equal(code, Page.Slice(100, code.Length).ToArray());
        byte[] kept = ours[random.Next(ours.Count)];
        for (int index = 0; index < code.Length; index++)
        {
            Page[100 + index] = random.Next(2) == 0 ? kept[index] : code[index];
        }

        bool probed = random.Next(2) == 0;
        if (probed)
        {
            Page[100] = code[0] = Breakpoint;
        }

        _ = pages.Prepare(Frame);
        Assert.Equal(code, Page.Slice(100, code.Length).ToArray());
    }

    [Fact(DisplayName = "A trap that the guest read is the instruction that it stood on")]
    public void Trap()
    {
        CodePages pages = Pages();
        byte[] code = [0x90, 0x9D, 0x90];
        Load(pages, code, [1]);
        byte kept = Page[101];
        Assert.Equal(CodePages.Trap, kept);
        Assert.True(pages.Remove(Frame, out _));
        Page[101] = kept;
        _ = pages.Prepare(Frame);
        Assert.Equal(code, Page.Slice(100, code.Length).ToArray());
    }

    [Fact(DisplayName = "A trap that the guest copied into a slot is what stood at the breakpoint, and elsewhere a HLT is a HLT")]
    public void Copied_trap()
    {
        const ulong SlotFrame = Frame + 1;
        const ulong Slot = 0xFFFF_FFFF_C000_0000;
        CodePages pages = Pages();
        byte[] code = [0x90, 0x9C, 0x90];
        Load(pages, code, [1]);
        Assert.True(pages.Remove(Frame, out _));
        Page[101] = Breakpoint;
        _ = pages.Prepare(Frame);
        pages.Add(Frame, Address, [], spill: 0, new BitArray(Paging.PageSize, true));
        pages.AddCovered(SlotFrame, Slot);

        Assert.True(pages.TryReadCopiedTrap(SlotFrame, Address + 101, out byte meant));
        Assert.Equal(0x9C, meant);
        Assert.False(pages.TryReadCopiedTrap(SlotFrame, Address + 100, out _));
        Assert.False(pages.TryReadCopiedTrap(Frame, Address + 101, out _));
        Assert.False(pages.TryReadCopiedTrap(SlotFrame, Slot, out _));
    }

    [Property(MaxTest = 300, DisplayName = "A jump or a breakpoint of the guest's own is left alone, also where its displacement has the byte of a trap")]
    public void Own_jump(int seed)
    {
        var random = new Random(seed);
        CodePages pages = Pages();
        byte[] code = new byte[12];
        for (int index = 0; index < code.Length; index++)
        {
            do
            {
                code[index] = (byte)random.Next(256);
            }
            while (code[index] is NearJump or Breakpoint);
        }

        int trap = random.Next(code.Length - 5);
        code[trap] = 0x9C;
        Load(pages, code, [trap]);
        byte[] patch = new byte[5];
        random.NextBytes(patch);
        patch[0] = NearJump;
        Assert.Equal(Replacement.Done, pages.TryReplace(Address + 100 + (ulong)trap, code.AsSpan(trap, patch.Length), patch));
        Assert.True(pages.Remove(Frame, out _));

        // Each byte of it changes: one that does not may be taken for the guest's old one.
        byte[] jump = new byte[5];
        int start = Math.Max(0, trap - random.Next(5));
        for (int index = 0; index < jump.Length; index++)
        {
            byte now = Page[100 + start + index];
            do
            {
                jump[index] = (byte)random.Next(256);
            }
            while (jump[index] == now || jump[index] == CodePages.Trap || patch.Contains(jump[index]));
        }

        jump[0] = random.Next(2) == 0 ? NearJump : Breakpoint;
        if (start < trap)
        {
            jump[trap - start] = CodePages.Trap;
        }

        jump.CopyTo(Page[(100 + start)..]);
        byte[] written = Page.ToArray();
        _ = pages.Prepare(Frame);
        Assert.Equal(written, Page.ToArray());
    }

    private CodePages Pages() => new(memory) { OriginalText = (Frame, Frame + 1) };

    private void Load(CodePages pages, byte[] code, int[] traps)
    {
        Page.Fill(0x90);
        code.CopyTo(Page[100..]);
        pages.Add(Frame, Address, [.. traps.Select(offset => 100 + offset)], spill: 0, new BitArray(Paging.PageSize, true));
    }
}
