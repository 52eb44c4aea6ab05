using Dmp.Kvm.Memory;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Memory;

public sealed class PageWalkSpecs : IDisposable
{
    private const ulong P = (ulong)PageEntry.Present;
    private const ulong W = (ulong)PageEntry.Writable;
    private const ulong U = (ulong)PageEntry.User;
    private const ulong A = (ulong)PageEntry.Accessed;
    private const ulong D = (ulong)PageEntry.Dirty;
    private const ulong Large = (ulong)PageEntry.Large;
    private const ulong G = (ulong)PageEntry.Global;
    private const ulong Nx = (ulong)PageEntry.NoExecute;
    private const ulong Address = 0x0000_7F12_3456_7ABC;
    private const ulong Pat = 1UL << 12;

    private readonly GuestMemory memory = GuestMemory.Create(4UL << 20);
    private readonly GuestTables tables;

    public PageWalkSpecs() => tables = new GuestTables(memory);

    private static PagingMode Mode => new(GuestTables.Root | 0xFFF, WriteProtect: true, NoExecuteEnabled: true, GlobalEnabled: true);

    public void Dispose() => memory.Dispose();

    [Theory(DisplayName = "A leaf of each level adds the offset within its page")]
    [InlineData(1, 0x0000_0012_3450_0000, 0x0000_0012_3450_0ABC)]
    [InlineData(2, 0x0000_0012_3440_0000, 0x0000_0012_3456_7ABC)]
    [InlineData(3, 0x0000_0012_0000_0000, 0x0000_0012_3456_7ABC)]
    public void Leaves(int level, ulong frame, ulong expected)
    {
        tables.Map(Address, level, frame | P | W | U | G | (level > 1 ? Large | Pat : Large));
        Translation found = Walk(Address, PageAccess.Read);
        Assert.True(found.Allowed);
        Assert.Equal(expected, found.Address.Value);
        Assert.Equal(level, found.Level);
        Assert.True(found.Writable && found.User && found.Executable && found.Global);
        Assert.False(found.Accessed || found.Dirty);
        Assert.False(PageWalk.Translate(memory, Mode with { GlobalEnabled = false }, Address, PageAccess.Read).Global);
    }

    [Fact(DisplayName = "Addresses of the negative half are walked by their low 48 bits")]
    public void Negative_half()
    {
        tables.Map(0xFFFF_FFFF_8123_4000, 1, 0x5000 | P);
        Assert.Equal(0x5FFFUL, Walk(0xFFFF_FFFF_8123_4FFF, PageAccess.Read).Address.Value);
    }

    [Theory(DisplayName = "A right that one level lacks is lacking")]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void Rights_of_all_levels(int level)
    {
        tables.Map(Address, 1, 0x5000 | P | W | U);
        ref ulong entry = ref tables.Entry(Address, level);
        ulong full = entry;

        entry = full & ~W;
        Denied(PageAccess.Write, PageFaultError.Present | PageFaultError.Write);
        Denied(PageAccess.Write | PageAccess.User, PageFaultError.Present | PageFaultError.Write | PageFaultError.User);
        Assert.False(Allowed(PageAccess.Read | PageAccess.User).Writable);

        entry = full & ~U;
        Denied(PageAccess.User, PageFaultError.Present | PageFaultError.User);
        Denied(
            PageAccess.User | PageAccess.Fetch,
            PageFaultError.Present | PageFaultError.User | PageFaultError.InstructionFetch);
        Assert.False(Allowed(PageAccess.Write).User);

        entry = full | Nx;
        Denied(PageAccess.Fetch, PageFaultError.Present | PageFaultError.InstructionFetch);
        Assert.False(Allowed(PageAccess.Write | PageAccess.User).Executable);

        entry = full & ~P;
        Denied(PageAccess.Read, PageFaultError.None);
        Denied(PageAccess.Write | PageAccess.User, PageFaultError.Write | PageFaultError.User);
        Denied(PageAccess.Fetch, PageFaultError.InstructionFetch);
    }

    [Fact(DisplayName = "Without CR0.WP supervisor code writes to read-only pages, user code does not")]
    public void Write_protect()
    {
        tables.Map(Address, 1, 0x5000 | P | U);
        PagingMode mode = Mode with { WriteProtect = false };
        Translation found = PageWalk.Translate(memory, mode, Address, PageAccess.Write);
        Assert.True(found.Allowed);
        Assert.False(found.Writable);
        Assert.Equal(
            PageFaultError.Present | PageFaultError.Write | PageFaultError.User,
            PageWalk.Translate(memory, mode, Address, PageAccess.Write | PageAccess.User).Error);
    }

    [Theory(DisplayName = "Without EFER.NXE bit 63 is reserved and fetch faults are not marked")]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void No_nx(int level)
    {
        PagingMode mode = Mode with { NoExecuteEnabled = false };
        tables.Map(Address, 1, 0x5000 | P);
        Assert.True(PageWalk.Translate(memory, mode, Address, PageAccess.Fetch).Executable);
        tables.Entry(Address, level) |= Nx;
        Assert.Equal(
            PageFaultError.Present | PageFaultError.ReservedBit,
            PageWalk.Translate(memory, mode, Address, PageAccess.Fetch).Error);
    }

    [Theory(DisplayName = "Reserved bits fault at every level")]
    [InlineData(1, 1UL << 46)]
    [InlineData(1, 1UL << 51)]
    [InlineData(2, 1UL << 50)]
    [InlineData(3, 1UL << 47)]
    [InlineData(4, 1UL << 46)]
    [InlineData(4, Large)]
    [InlineData(2, Large | 0x2000)]
    [InlineData(2, Large | 0x10_0000)]
    [InlineData(3, Large | 0x2000)]
    [InlineData(3, Large | 0x2000_0000)]
    public void Reserved_bits(int level, ulong bits)
    {
        tables.Map(Address, 1, 0x5000 | P | W | U);
        ref ulong entry = ref tables.Entry(Address, level);
        entry = (bits & Large) != 0 && level < 4 ? bits | P | W | U : entry | bits;
        Denied(PageAccess.Write, PageFaultError.Present | PageFaultError.ReservedBit | PageFaultError.Write);
        entry &= ~P;
        Denied(PageAccess.Write, PageFaultError.Write);
    }

    [Theory(DisplayName = "Bits that software may use are not reserved")]
    [InlineData(0x7FFUL << 52)]
    [InlineData(7UL << 9)]
    [InlineData((ulong)(PageEntry.WriteThrough | PageEntry.CacheDisable))]
    [InlineData(1UL << 45)]
    public void Ignored_bits(ulong bits)
    {
        tables.Map(Address, 1, 0x5000 | P | bits);
        Assert.Equal(0x5ABCUL + (bits & Paging.FrameMask), Allowed(PageAccess.Read).Address.Value);
    }

    [Fact(DisplayName = "A table outside RAM reads as reserved bits")]
    public void Table_outside()
    {
        PageFaultError expected = PageFaultError.Present | PageFaultError.ReservedBit;
        PagingMode mode = Mode with { Cr3 = 4UL << 20 };
        Assert.Equal(expected, PageWalk.Translate(memory, mode, Address, PageAccess.Read).Error);
        foreach (int level in (int[])[2, 3, 4])
        {
            tables.Entry(Address, level) = 0x3FFF_FFFF_F000 | P | W | U;
            Denied(PageAccess.Read, expected);
        }
    }

    [Fact(DisplayName = "A walk sets accessed bits on all levels and the dirty bit on a written leaf")]
    public void Accessed_and_dirty()
    {
        tables.Map(Address, 1, 0x5000 | P | W | U);
        Assert.False(Allowed(PageAccess.Read).Accessed);
        for (int level = 1; level <= 4; level++)
        {
            Assert.Equal(A, tables.Entry(Address, level) & (A | D));
        }

        Translation written = Allowed(PageAccess.Write);
        Assert.True(written.Accessed && written.Dirty);
        Assert.Equal(0x5000 | P | W | U | A | D, tables.Entry(Address, 1));
        Assert.Equal(A, tables.Entry(Address, 2) & (A | D));
        Assert.True(Allowed(PageAccess.Read).Dirty);
    }

    [Fact(DisplayName = "A probe changes nothing, and neither does a refused access change the leaf")]
    public void Probe()
    {
        tables.Map(Address, 1, 0x5000 | P | W);
        byte[] before = memory.Slice(new(0), 4 << 20).ToArray();
        Assert.True(Walk(Address, PageAccess.Write | PageAccess.Probe).Allowed);
        Assert.True(memory.Slice(new(0), 4 << 20).SequenceEqual(before));
        Denied(PageAccess.Write | PageAccess.User, PageFaultError.Present | PageFaultError.Write | PageFaultError.User);
        Assert.Equal(0x5000 | P | W, tables.Entry(Address, 1));
    }

    [Fact(DisplayName = "Without memory there is no walk")]
    public void Null() => Assert.Throws<ArgumentNullException>(() => PageWalk.Translate(null!, Mode, 0, PageAccess.Read));

    [Property(DisplayName = "Random tables are walked as a naive reference walks them", MaxTest = 150)]
    public void Reference(int seed)
    {
        Random random = new(seed);
        memory.Slice(new(GuestTables.Root), 8 * Paging.PageSize).Clear();
        int[] indices = [0, 1, 511];

        // Eight tables that point at each other at random: every entry is met at every level.
        for (int table = 0; table < 8; table++)
        {
            foreach (int index in indices)
            {
                memory.Word(new(GuestTables.Root + (ulong)((table * Paging.PageSize) + (index * 8)))) = RandomEntry(random);
            }
        }

        for (int round = 0; round < 60; round++)
        {
            ulong address = (ulong)random.Next(Paging.PageSize);
            for (int level = 1; level <= 4; level++)
            {
                address |= (ulong)indices[random.Next(3)] << Paging.LevelShift(level);
            }

            address = (ulong)((long)(address << 16) >> 16);
            PageAccess access = (PageAccess)random.Next(8);
            if (access.HasFlag(PageAccess.Write) && access.HasFlag(PageAccess.Fetch))
            {
                access &= ~PageAccess.Fetch;
            }

            PagingMode mode = new(GuestTables.Root, random.Next(2) == 0, random.Next(4) != 0, random.Next(2) == 0);
            (ulong Physical, int Level, ulong And, ulong Or, uint Error, bool Ok) expected = Naive(mode, address, access);
            Translation found = PageWalk.Translate(memory, mode, address, access | PageAccess.Probe);
            Assert.Equal(expected.Ok, found.Allowed);
            Assert.Equal(expected.Error, (uint)found.Error);
            if (expected.Ok)
            {
                Assert.Equal(expected.Physical, found.Address.Value);
                Assert.Equal(expected.Level, found.Level);
                Assert.Equal((expected.And & 2) != 0, found.Writable);
                Assert.Equal((expected.And & 4) != 0, found.User);
                Assert.Equal(!mode.NoExecuteEnabled || expected.Or >> 63 == 0, found.Executable);
            }
        }
    }

    private static ulong RandomEntry(Random random)
    {
        ulong entry = GuestTables.Root + ((ulong)random.Next(8) << 12);
        entry |= random.Next(8) == 0 ? 0 : P;
        entry |= random.Next(5) == 0 ? 0 : W;
        entry |= random.Next(5) == 0 ? 0 : U;
        entry |= random.Next(7) == 0 ? Nx : 0;
        entry |= (ulong)random.Next(4) << 5;
        if (random.Next(5) == 0)
        {
            entry = (entry & ~Paging.FrameMask) | Large;
            entry |= random.Next(3) == 0 ? (ulong)random.Next(1, 1 << 18) << 12 : (ulong)random.Next(1 << 8) << 30;
        }

        return random.Next(20) == 0 ? entry | (1UL << random.Next(46, 52)) : entry;
    }

    // From the manual's tables, one rule a line, and nothing shared with the walk but the entry layout.
    private (ulong Physical, int Level, ulong And, ulong Or, uint Error, bool Ok) Naive(
        PagingMode mode, ulong address, PageAccess access)
    {
        bool write = (access & PageAccess.Write) != 0;
        bool user = (access & PageAccess.User) != 0;
        bool fetch = (access & PageAccess.Fetch) != 0;
        uint error = (write ? 2u : 0) + (user ? 4u : 0) + (fetch && mode.NoExecuteEnabled ? 16u : 0);
        ulong at = mode.Cr3;
        ulong and = ulong.MaxValue;
        ulong or = 0;
        for (int level = 4; level >= 1; level--)
        {
            int shift = 3 + (9 * level);
            ulong slot = at + (((address >> shift) % 512) * 8);
            if (slot + 8 > memory.Size)
            {
                return (0, 0, 0, 0, error + 9, false);
            }

            ulong entry = memory.Read<ulong>(new(slot));
            if (entry % 2 == 0)
            {
                return (0, 0, 0, 0, error, false);
            }

            bool large = (entry >> 7) % 2 == 1;
            bool reserved = (entry >> 46) % 64 != 0
                || (entry >> 63 != 0 && !mode.NoExecuteEnabled)
                || (large && level == 4)
                || (large && level == 3 && (entry >> 13) % (1 << 17) != 0)
                || (large && level == 2 && (entry >> 13) % (1 << 8) != 0);
            if (reserved)
            {
                return (0, 0, 0, 0, error + 9, false);
            }

            and &= entry;
            or |= entry;
            if (level == 1 || (large && level < 4))
            {
                bool ok = !(user && (and & 4) == 0)
                    && !(write && (and & 2) == 0 && (user || mode.WriteProtect))
                    && !(fetch && mode.NoExecuteEnabled && or >> 63 != 0);
                ulong frame = (entry % (1UL << 52)) >> shift << shift;
                return (frame + (address % (1UL << shift)), level, and, or, ok ? 0 : error + 1, ok);
            }

            at = (entry % (1UL << 52)) >> 12 << 12;
        }

        throw new InvalidOperationException("no level is left");
    }

    private Translation Walk(ulong address, PageAccess access) => PageWalk.Translate(memory, Mode, address, access);

    private Translation Allowed(PageAccess access)
    {
        Translation found = Walk(Address, access);
        Assert.True(found.Allowed, $"{access}: {found.Error}");
        return found;
    }

    private void Denied(PageAccess access, PageFaultError error)
    {
        Translation found = Walk(Address, access);
        Assert.False(found.Allowed);
        Assert.Equal(error, found.Error);
    }
}
