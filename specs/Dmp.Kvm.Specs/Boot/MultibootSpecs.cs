using System.Buffers.Binary;
using System.Text;
using Dmp.Kvm.Boot;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Specs.Machine;
using FsCheck;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Boot;

public class MultibootSpecs
{
    private const int RamMebibytes = 32;
    private static readonly byte[] Code = [0xF4, 0xEB, 0xFD];
    private readonly ArrayRam ram = new(RamMebibytes);

    [Fact(DisplayName = "A multiboot image is entered in 32-bit mode with the loader's magic in EAX and its information at EBX")]
    public void Entry()
    {
        BootState state = Load(TinyMultiboot.Elf(Code), new BootRequest());
        Assert.Equal(BootMode.ProtectedMode, state.Mode);
        Assert.Equal(TinyKernel.Entry, state.Entry.Value);
        Assert.Equal(0x2BADB002u, state.Eax);
        Assert.Equal(BootLayout.BootParameters.Value, state.Ebx);
        Assert.True(ram.Slice(state.Entry, Code.Length).SequenceEqual(Code));
        Span<byte> gdt = ram.Slice(state.GdtBase, state.GdtLimit + 1);
        Assert.Equal(0x00CF_9B00_0000_FFFFUL, BinaryPrimitives.ReadUInt64LittleEndian(gdt[state.CodeSelector..]));
        Assert.Equal(0x00CF_9300_0000_FFFFUL, BinaryPrimitives.ReadUInt64LittleEndian(gdt[state.DataSelector..]));
    }

    [Fact(DisplayName = "The information has memory sizes, memory map, command line and loader name, and says so")]
    public void Information()
    {
        Span<byte> info = Info(Load(TinyMultiboot.Elf(Code), new BootRequest { CommandLine = "one two" }));
        Assert.Equal((1u << 0) | (1u << 2) | (1u << 3) | (1u << 6) | (1u << 9), U32(info, 0));
        Assert.Equal(639u, U32(info, 4));
        Assert.Equal((RamMebibytes - 1) * 1024u, U32(info, 8));
        Assert.EndsWith(" one two", TextAt(U32(info, 16)), StringComparison.Ordinal);
        Assert.Equal(0u, U32(info, 20));
        Assert.Equal("Dmp", TextAt(U32(info, 64)));
        Assert.Equal(
            [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (0x100000, (RamMebibytes - 1UL) << 20, 1)],
            MemoryMap(info));
    }

    [Fact(DisplayName = "The RAM disk is a module: page-aligned, with its file's name")]
    public void Module()
    {
        byte[] content = Encoding.ASCII.GetBytes(string.Concat(Enumerable.Repeat("module ", 1000)));
        using var module = new KernelFile(content);
        Span<byte> info = Info(Load(TinyMultiboot.Elf(Code), new BootRequest { InitrdPath = module.Path }));
        Assert.Equal(1u, U32(info, 20));
        Span<byte> entry = ram.Slice(new(U32(info, 24)), 16);
        Assert.Equal(0u, U32(entry, 0) & (uint)Paging.PageOffsetMask);
        Assert.Equal((uint)content.Length, U32(entry, 4) - U32(entry, 0));
        Assert.True(ram.Slice(new(U32(entry, 0)), content.Length).SequenceEqual(content));
        Assert.Equal(Path.GetFileName(module.Path), TextAt(U32(entry, 8)));
    }

    [Theory(DisplayName = "What cannot be given is refused by name")]
    [InlineData(1u << 2, "video mode")]
    [InlineData(1u << 16, "flag 16")]
    [InlineData(1u << 3, "unknown requirements 0x8")]
    [InlineData(1u << 15, "unknown requirements 0x8000")]
    public void Requirements(uint flags, string expected) =>
        Assert.Contains(expected, KernelFile.Refusal(TinyMultiboot.Elf(Code, flags)), StringComparison.Ordinal);

    [Fact(DisplayName = "Optional requirements are no reason to refuse")]
    public void OptionalRequirements() => Load(TinyMultiboot.Elf(Code, 0xFFFE_0000), new BootRequest());

    [Fact(DisplayName = "An ELF64 file with a multiboot header, and an ELF32 file without one, are refused by name")]
    public void OtherFiles()
    {
        const int header = 0x300;
        byte[] elf64 = TestKernel.Elf();
        TinyMultiboot.Elf(Code).AsSpan(TinyMultiboot.HeaderOffset, 12).CopyTo(elf64.AsSpan(header));
        Assert.Contains("elf32-i386", KernelFile.Refusal(elf64), StringComparison.Ordinal);
        byte[] elf32 = TinyMultiboot.Elf(Code).With(TinyMultiboot.HeaderOffset + 8, [0]);
        Assert.Contains("without a multiboot header", KernelFile.Refusal(elf32), StringComparison.Ordinal);
    }

    [Fact(DisplayName = "Too little memory for image and module is an error that says how much it takes")]
    public void TooLittleMemory()
    {
        using var module = new KernelFile(new byte[30 << 20]);
        string message = Assert.Throws<BootException>(
            () => Load(TinyMultiboot.Elf(Code), new BootRequest { InitrdPath = module.Path })).Message;
        Assert.Contains("--memory 36M", message, StringComparison.Ordinal);
    }

    [Property(DisplayName = "Mutations of a multiboot image are loaded or refused in one line, nothing else", MaxTest = 2000)]
    public void Mutations((NonNegativeInt At, byte Value)[] changes)
    {
        byte[] image = TinyMultiboot.Elf(Code);
        foreach ((NonNegativeInt at, byte value) in changes)
        {
            // Where the headers are: behind them nothing is looked at.
            image[4 + (at.Get % 0x6C)] = value;
        }

        using var file = new KernelFile(image);
        try
        {
            using KernelImage kernel = KernelImage.Open(file.Path);
            _ = KernelLoader.Load(ram, kernel, new BootRequest());
        }
        catch (BootException refusal)
        {
            Assert.DoesNotContain('\n', refusal.Message);
        }
    }

    private BootState Load(byte[] image, BootRequest request)
    {
        using KernelImage kernel = KernelFile.Open(image);
        return KernelLoader.Load(ram, kernel, request);
    }

    private Span<byte> Info(BootState state) => ram.Slice(new(state.Ebx), 128);

    private string TextAt(uint address)
    {
        Span<byte> bytes = ram.Slice(new(address), 256);
        return Encoding.ASCII.GetString(bytes[..bytes.IndexOf((byte)0)]);
    }

    private List<(ulong Start, ulong Length, uint Type)> MemoryMap(Span<byte> info)
    {
        List<(ulong, ulong, uint)> map = [];
        Span<byte> entries = ram.Slice(new(U32(info, 48)), (int)U32(info, 44));
        while (!entries.IsEmpty)
        {
            map.Add((
                BinaryPrimitives.ReadUInt64LittleEndian(entries[4..]),
                BinaryPrimitives.ReadUInt64LittleEndian(entries[12..]),
                U32(entries, 20)));
            entries = entries[((int)U32(entries, 0) + 4)..];
        }

        return map;
    }

    private static uint U32(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt32LittleEndian(bytes[offset..]);
}
