using System.Buffers.Binary;
using System.Text;
using Dmp.Kvm.Boot;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.Boot;

public class LinuxLoaderSpecs
{
    private const int RamMebibytes = 32;
    private readonly ArrayRam _ram = new(RamMebibytes);

    [Fact(DisplayName = "Segments are where the ELF file wants them, with zeros behind")]
    public void Segments()
    {
        _ram.Slice(new(TestKernel.DataStart), (int)TestKernel.DataMemory).Fill(0xCC);
        BootState state = Load(new BootRequest());
        byte[] elf = TestKernel.Elf();
        Assert.True(_ram.Slice(new(TestKernel.Start), TestKernel.TextSize).SequenceEqual(elf.AsSpan(0x1000, TestKernel.TextSize)));
        Assert.True(_ram.Slice(new(TestKernel.DataStart), TestKernel.DataSize).SequenceEqual(elf.AsSpan(^TestKernel.DataSize)));
        int bss = (int)TestKernel.DataMemory - TestKernel.DataSize;
        Assert.False(_ram.Slice(new(TestKernel.DataStart + TestKernel.DataSize), bss).ContainsAnyExcept((byte)0));
        Assert.Equal(TestKernel.Start, state.Entry.Value);
        Assert.Equal(TestKernel.Start, state.KernelStart.Value);
        Assert.Equal(TestKernel.DataStart + TestKernel.DataMemory - TestKernel.Start, state.KernelLength);
        Assert.Equal(TestKernel.VirtualBase, state.KernelVirtualBase.Value);
        Assert.Equal(TestKernel.BuildId, state.BuildId);
    }

    [Fact(DisplayName = "boot_params has the setup header, the command line, ACPI and the memory map")]
    public void BootParameters()
    {
        BootState state = Load(new BootRequest { CommandLine = "console=ttyS0 quiet" });
        Span<byte> page = _ram.Slice(state.BootParameters, Paging.PageSize);
        Assert.Equal("HdrS", Encoding.ASCII.GetString(page.Slice(0x202, 4)));
        Assert.Equal(0xFF, page[0x210]);
        Assert.Equal(1, page[0x211] & 1);
        Assert.False(page[..0x40].ContainsAnyExcept((byte)0));

        Span<byte> line = _ram.Slice(new(U32(page, 0x228)), 64);
        Assert.Equal("console=ttyS0 quiet", Encoding.ASCII.GetString(line[..line.IndexOf((byte)0)]));
        Assert.Equal("RSD PTR ", Encoding.ASCII.GetString(_ram.Slice(new(U64(page, 0x70)), 8)));
        Assert.Equal(
            [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (0x100000, (RamMebibytes - 1UL) << 20, 1)],
            MemoryMap(page));
    }

    [Fact(DisplayName = "RAM above 4 GiB is in the memory map")]
    public void HighMemory()
    {
        var ram = new ArrayRam(RamMebibytes, above4GiB: 1UL << 30);
        using KernelImage kernel = KernelFile.Open(TestKernel.Elf());
        BootState state = KernelLoader.Load(ram, kernel, new BootRequest());
        Assert.Equal((4UL << 30, 1UL << 30, 1u), MemoryMap(ram.Slice(state.BootParameters, Paging.PageSize))[^1]);
    }

    [Fact(DisplayName = "The RAM disk lies page-aligned at the top of low RAM, and boot_params says where")]
    public void Initrd()
    {
        byte[] content = Encoding.ASCII.GetBytes(string.Concat(Enumerable.Repeat("initrd ", 1000)));
        using var initrd = new KernelFile(content);
        BootState state = Load(new BootRequest { InitrdPath = initrd.Path });
        Span<byte> page = _ram.Slice(state.BootParameters, Paging.PageSize);
        ulong start = U32(page, 0x218);
        Assert.Equal((uint)content.Length, U32(page, 0x21C));
        Assert.Equal(0UL, start & Paging.PageOffsetMask);
        Assert.InRange(start + (ulong)content.Length, _ram.Size - Paging.PageSize, _ram.Size);
        Assert.True(_ram.Slice(new(start), content.Length).SequenceEqual(content));
    }

    [Fact(DisplayName = "The RAM disk stays below the highest address that the kernel allows")]
    public void InitrdMaximum()
    {
        using var initrd = new KernelFile(new byte[5000]);
        using KernelImage kernel = KernelFile.Open(
            TestKernel.BzImage(TestKernel.Zstd(TestKernel.Elf())).With(0x22C, 0xFF, 0xFF, 0x7F, 0x01));
        BootState state = KernelLoader.Load(_ram, kernel, new BootRequest { InitrdPath = initrd.Path });
        Assert.Equal(0x180_0000u - 0x2000, U32(_ram.Slice(state.BootParameters, Paging.PageSize), 0x218));
    }

    [Fact(DisplayName = "The first 4 GiB are identity-mapped in 2 MiB pages")]
    public void PageTables()
    {
        BootState state = Load(new BootRequest());
        foreach (ulong address in new ulong[] { 0, 0x1234567, 0x3FFFFFFF, 0x40000000, 0xFEE00000, 0xFFFFFFFF })
        {
            Assert.Equal(address, Translate(state.PageTableRoot, address));
        }

        Assert.Null(Translate(state.PageTableRoot, 4UL << 30));
    }

    [Fact(DisplayName = "The GDT has flat segments at 0x10 and 0x18")]
    public void Gdt()
    {
        BootState state = Load(new BootRequest());
        Span<byte> gdt = _ram.Slice(state.GdtBase, state.GdtLimit + 1);
        Assert.Equal(0x00AF9B000000FFFFUL, U64(gdt, state.CodeSelector));
        Assert.Equal(0x00CF93000000FFFFUL, U64(gdt, state.DataSelector));
    }

    [Fact(DisplayName = "The 32-bit entry is that of the packed kernel, as it is in the file, with boot_params in ESI")]
    public void ThirtyTwoBitEntry()
    {
        byte[] packed = TestKernel.BzImage(TestKernel.Gzip(TestKernel.Elf()));
        using KernelImage kernel = KernelFile.Open(packed);
        BootState state = KernelLoader.Load(_ram, kernel, new BootRequest { Use32BitEntry = true, CommandLine = "quiet" });
        const int protectedMode = 1024;
        Assert.Equal(BootMode.ProtectedMode, state.Mode);
        Assert.Equal(0x100000UL, state.Entry.Value);
        Assert.Equal(state.BootParameters.Value, state.Esi);
        Assert.True(_ram.Slice(state.Entry, packed.Length - protectedMode).SequenceEqual(packed.AsSpan(protectedMode)));
        Span<byte> page = _ram.Slice(state.BootParameters, Paging.PageSize);
        Assert.Equal(0x100000u, U32(page, 0x214));
        Span<byte> line = _ram.Slice(new(U32(page, 0x228)), 64);
        Assert.Equal("quiet nokaslr", Encoding.ASCII.GetString(line[..line.IndexOf((byte)0)]));
        Assert.Equal(TestKernel.Start, state.KernelStart.Value);
        Assert.True(state.UnpacksItself);
    }

    [Fact(DisplayName = "A relocatable kernel is entered in 32-bit mode where it prefers to be")]
    public void RelocatableKernel()
    {
        using KernelImage kernel = KernelFile.Open(
            TestKernel.BzImage(TestKernel.Gzip(TestKernel.Elf())).With(0x234, [1]));
        BootState state = KernelLoader.Load(_ram, kernel, new BootRequest { Use32BitEntry = true });
        Assert.Equal(TestKernel.Start, state.Entry.Value);
    }

    [Fact(DisplayName = "A bare vmlinux has no 32-bit entry to choose")]
    public void NoThirtyTwoBitEntry()
    {
        using KernelImage kernel = KernelFile.Open(TestKernel.Elf());
        string message = Assert.Throws<KernelImageException>(
            () => KernelLoader.Load(_ram, kernel, new BootRequest { Use32BitEntry = true })).Message;
        Assert.Contains("no 32-bit entry", message, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "Too little memory is an error that says how much it takes")]
    public void TooLittleMemory()
    {
        var small = new ArrayRam(8);
        using KernelImage kernel = KernelFile.Open(TestKernel.BzImage(TestKernel.Lz4(TestKernel.Elf())));
        string message = Assert.Throws<BootException>(() => KernelLoader.Load(small, kernel, new BootRequest())).Message;
        Assert.Contains("--memory 20M", message, StringComparison.Ordinal);
        Assert.Contains("8 MiB", message, StringComparison.Ordinal);

        using var initrd = new KernelFile(new byte[14 << 20]);
        message = Assert.Throws<BootException>(
            () => KernelLoader.Load(_ram, kernel, new BootRequest { InitrdPath = initrd.Path })).Message;
        Assert.Contains("14 MiB", message, StringComparison.Ordinal);
        Assert.Contains("--memory 34M", message, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "A command line that the kernel would cut off is refused")]
    public void CommandLine()
    {
        Load(new BootRequest { CommandLine = new string('x', 2047) });
        Assert.Contains("2047", Assert.Throws<BootException>(() => Load(new BootRequest { CommandLine = new string('x', 2048) })).Message, StringComparison.Ordinal);
        Assert.Throws<BootException>(() => Load(new BootRequest { CommandLine = "a\0b" }));
    }

    [Fact(DisplayName = "A RAM disk that is missing, empty or a directory is refused by name")]
    public void NoInitrd()
    {
        using var empty = new KernelFile([]);
        foreach (string path in new[] { "/nowhere/initrd", empty.Path, "/tmp", "/dev/zero", "" })
        {
            Assert.StartsWith(path, Assert.Throws<BootException>(() => Load(new BootRequest { InitrdPath = path })).Message, StringComparison.Ordinal);
        }
    }

    private BootState Load(BootRequest request)
    {
        using KernelImage kernel = KernelFile.Open(TestKernel.BzImage(TestKernel.Gzip(TestKernel.Elf())));
        return KernelLoader.Load(_ram, kernel, request);
    }

    private ulong? Translate(GuestPhysicalAddress root, ulong address)
    {
        ulong table = root.Value;
        for (int level = 4; ; level--)
        {
            ulong entry = U64(_ram.Slice(new(table), Paging.PageSize), Paging.Index(address, level) * Paging.EntrySize);
            if ((entry & (ulong)PageEntry.Present) == 0)
            {
                return null;
            }

            if ((entry & (ulong)PageEntry.Large) != 0)
            {
                ulong offset = (1UL << Paging.LevelShift(level)) - 1;
                return (entry & Paging.FrameMask & ~offset) | (address & offset);
            }

            table = entry & Paging.FrameMask;
        }
    }

    private static List<(ulong Start, ulong Length, uint Type)> MemoryMap(Span<byte> page)
    {
        var map = new List<(ulong Start, ulong Length, uint Type)>();
        for (int i = 0; i < page[0x1E8]; i++)
        {
            Span<byte> entry = page.Slice(0x2D0 + (i * 20), 20);
            map.Add((U64(entry, 0), U64(entry, 8), U32(entry, 16)));
        }

        return map;
    }

    private static uint U32(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt32LittleEndian(bytes[offset..]);

    private static ulong U64(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt64LittleEndian(bytes[offset..]);
}
