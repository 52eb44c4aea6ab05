using Dmp.Kvm.Memory;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Memory;

public class VirtualTlbSpecs
{
    private const ulong User = 0x0000_0040_0000_0000;
    private const ulong Kernel = 0xFFFF_8880_0000_0000;
    private const ulong MonitorEntry = 0x10_0000_4000 | (ulong)(PageEntry.Present | PageEntry.Writable);
    private const ulong Frames = (64UL << 20) / Paging.PageSize;
    private const int MonitorSlot = 256;

    private readonly FakeShadowMemory shadow = new();
    private readonly VirtualTlb tlb;

    public VirtualTlbSpecs() => tlb = new VirtualTlb(shadow, Frames, MonitorSlot, MonitorEntry);

    [Fact(DisplayName = "A new TLB is empty and shows the monitor in every root")]
    public void Empty()
    {
        Assert.Equal(0UL, tlb.Lookup(User, false) | tlb.Lookup(User, true) | tlb.Lookup(Kernel, false));
        Assert.NotEqual(tlb.Root(false), tlb.Root(true));
        for (int root = 0; root < 16; root++)
        {
            Assert.Equal(MonitorEntry, shadow.Get((root * 512) + MonitorSlot));
        }
    }

    [Fact(DisplayName = "A user page is seen in both views, a supervisor page of either half only in the kernel view")]
    public void Views()
    {
        tlb.Fill(User, Leaf(0x1000, user: true), userView: true);
        Assert.NotEqual(0UL, tlb.Lookup(User, false));
        tlb.Fill(User + 0x1000, Leaf(0x2000, user: false), userView: false);
        tlb.Fill(Kernel, Leaf(0x3000, user: false), userView: false);
        Assert.Equal(0x2000UL, tlb.Lookup(User + 0x1000, false) & Paging.FrameMask);
        Assert.Equal(0x3000UL, tlb.Lookup(Kernel, false) & Paging.FrameMask);
        Assert.Equal(0UL, tlb.Lookup(User + 0x1000, true));
        Assert.Equal(0UL, tlb.Lookup(Kernel, true));
    }

    [Fact(DisplayName = "The kernel half is shared by all tags, global pages of it survive a CR3 load, others do not")]
    public void Kernel_half()
    {
        tlb.Fill(Kernel, Leaf(0x3000, user: false, global: true), userView: false);
        tlb.Fill(Kernel + 0x1000, Leaf(0x4000, user: false), userView: false);
        tlb.Load(1, keep: false);
        Assert.NotEqual(0UL, tlb.Lookup(Kernel, false));
        Assert.Equal(0UL, tlb.Lookup(Kernel + 0x1000, false));
        tlb.FlushNonGlobal();
        Assert.NotEqual(0UL, tlb.Lookup(Kernel, false));
        tlb.FlushAll();
        Assert.Equal(0UL, tlb.Lookup(Kernel, false));
    }

    [Fact(DisplayName = "An address space kept by PCID is there again; one loaded without bit 63 is empty")]
    public void Tags()
    {
        tlb.Fill(User, Leaf(0x1000), userView: true);
        tlb.Load(7, keep: true);
        Assert.Equal(0UL, tlb.Lookup(User, true));
        tlb.Load(0, keep: true);
        Assert.NotEqual(0UL, tlb.Lookup(User, true));
        tlb.Load(0, keep: false);
        Assert.Equal(0UL, tlb.Lookup(User, true));
    }

    [Fact(DisplayName = "A PCID that lost its tag comes back empty")]
    public void Eviction()
    {
        tlb.Fill(User, Leaf(0x1000), userView: true);
        for (ushort pcid = 1; pcid <= 8; pcid++)
        {
            tlb.Load(pcid, keep: true);
            Assert.Equal(0UL, tlb.Lookup(User, true));
        }

        tlb.Load(0, keep: true);
        Assert.Equal(0UL, tlb.Lookup(User, true));
    }

    [Theory(DisplayName = "INVLPG of any address of a guest page mapped by pieces drops all of them")]
    [InlineData(2, 0x1F_F000)]
    [InlineData(3, 0x3FFF_F000)]
    public void Pieces(int level, ulong last)
    {
        foreach (ulong offset in (ulong[])[0, 0x5000, last])
        {
            tlb.Fill(User + offset, Leaf(0x20_0000 + (offset & 0x1F_FFFF), level: level), userView: true);
        }

        tlb.FlushPage(User + 0x8000);
        Assert.All((ulong[])[0, 0x5000, last], offset => Assert.Equal(0UL, tlb.Lookup(User + offset, true)));
    }

    [Theory(DisplayName = "A frame that becomes code is writable nowhere any more, in 4 KiB or 2 MiB leaves")]
    [InlineData(false)]
    [InlineData(true)]
    public void Drop_writable(bool everything)
    {
        tlb.Fill(User, Leaf(0x20_3000, writable: true), userView: true);
        tlb.Fill(User + 0x1000, Leaf(0x20_3000), userView: true);
        tlb.Fill(Kernel, Leaf(0x20_3000, writable: true, user: false, level: 2, large: true), userView: false);
        Assert.Equal(0x20_0000UL, tlb.Lookup(Kernel + 0x12_3456, false) & Paging.FrameMask);
        if (everything)
        {
            tlb.DropFrame(0x203);
        }
        else
        {
            tlb.DropWritable(0x203);
        }

        Assert.Equal(0UL, tlb.Lookup(User, true) | tlb.Lookup(Kernel, false));
        Assert.Equal(everything, tlb.Lookup(User + 0x1000, true) == 0);
    }

    [Fact(DisplayName = "A large leaf gives way to small ones when one of them must differ")]
    public void Large_to_small()
    {
        tlb.Fill(User, Leaf(0x20_0000, writable: true, level: 2, large: true), userView: true);
        tlb.Fill(User + 0x1000, Leaf(0x20_1000, level: 2), userView: true);
        Assert.Equal(0UL, tlb.Lookup(User, true));
        Assert.Equal(0UL, tlb.Lookup(User + 0x1000, true) & (ulong)(PageEntry.Large | PageEntry.Writable));
    }

    [Fact(DisplayName = "A slot noted twice as not global is taken out once: the frame's other mappings are not forgotten")]
    public void Noted_twice()
    {
        tlb.Fill(User, Leaf(0x5000, writable: true), userView: true);
        tlb.Fill(Kernel, Leaf(0x5000, writable: true, user: false), userView: false);
        tlb.FlushPage(Kernel);
        tlb.Fill(Kernel, Leaf(0x5000, writable: true, user: false), userView: false);
        tlb.Load(1, keep: true);
        tlb.Load(0, keep: true);
        Assert.NotEqual(0UL, tlb.Lookup(User, true));
        tlb.DropWritable(5);
        Assert.Equal(0UL, tlb.Lookup(User, true));
        Assert.Equal(tlb.Fills, tlb.Removals);
    }

    [Fact(DisplayName = "INVLPG drops a global page of every PCID")]
    public void Global_pages_of_other_tags()
    {
        tlb.Fill(User, Leaf(0x5000, global: true), userView: true);
        tlb.Load(1, keep: true);
        tlb.FlushPage(User);
        tlb.Load(0, keep: true);
        Assert.Equal(0UL, tlb.Lookup(User, true));
    }

    [Fact(DisplayName = "A page that ceases to be global while its rights grow goes with the next CR3 load")]
    public void Global_no_more()
    {
        tlb.Fill(Kernel, Leaf(0x5000, user: false, global: true), userView: false);
        tlb.Fill(Kernel, Leaf(0x5000, user: false, writable: true), userView: false);
        tlb.Load(1, keep: true);
        Assert.Equal(0UL, tlb.Lookup(Kernel, false));
    }

    [Fact(DisplayName = "When the tables are used up everything is dropped, and it goes on")]
    public void Exhaustion()
    {
        FakeShadowMemory small = new(48);
        VirtualTlb few = new(small, Frames, MonitorSlot, MonitorEntry);
        for (ulong index = 0; index < 400; index++)
        {
            ulong address = (index % 3 == 0 ? Kernel : User) + (index << 30);
            bool user = index % 3 == 1;
            few.Fill(address, Leaf(index << 12, user: user, global: index % 2 == 0), userView: user);
            Assert.Equal(index << 12, few.Lookup(address, user) & Paging.FrameMask);
            if (index % 50 == 49)
            {
                few.Load((ushort)(index / 50), keep: true);
            }
        }

        Assert.True(few.Resets > 5);
        Assert.Equal(MonitorEntry, small.Get(MonitorSlot));
    }

    [Fact(DisplayName = "An audit visits what was filled, at its canonical address")]
    public void Visit()
    {
        tlb.Fill(User, Leaf(0x1000), userView: false);
        tlb.Fill(Kernel, Leaf(0x20_0000, user: false, level: 2, large: true), userView: false);
        List<(ulong, int)> seen = [];
        tlb.VisitLeaves(false, (address, _, level) => seen.Add((address, level)));
        Assert.Equal([(User, 1), (Kernel, 2)], seen);
    }

    [Property(DisplayName = "The TLB never holds what the architecture has invalidated", MaxTest = 300)]
    public void Model(int seed)
    {
        Random random = new(seed);
        FakeShadowMemory entries = new(random.Next(2) == 0 ? 64 : 256);
        VcpuPage page = new();
        VirtualTlb subject = new(entries, Frames, MonitorSlot, MonitorEntry, page: page);
        List<Cached> model = [];
        Watch? watch = null;
        ulong[] bases = [User, User + (1UL << 30), Kernel, Kernel + (1UL << 39)];
        ulong[] offsets = [0, 0x1000, 0x1F_F000, 0x20_0000, 0x20_1000];
        ushort current = 0;
        for (int step = 0; step < 120; step++)
        {
            ulong address = bases[random.Next(4)] + offsets[random.Next(5)];
            ushort pcid = (ushort)random.Next(10);
            ulong frame = ((ulong)(uint)random.Next(2) << 9) + (ulong)((uint)random.Next(3) * 0xFF);
            switch (random.Next(20))
            {
                case < 10:
                    (Cached cached, ShadowLeaf leaf, bool view) = RandomFill(random, current, address);
                    model.Add(cached);
                    subject.Fill(address, leaf, view);
                    ulong found = subject.Lookup(address, view);
                    Assert.Equal(leaf.Frame, FrameOf(found, address));
                    Assert.Equal(leaf.Writable, (found & (ulong)PageEntry.Writable) != 0);
                    Assert.Equal(leaf.Executable, (found & (ulong)PageEntry.NoExecute) == 0);
                    break;
                case < 13:
                    bool keep = random.Next(2) == 0;
                    current = pcid;
                    _ = keep ? 0 : model.RemoveAll(c => c.Pcid == pcid && !c.Leaf.Global);
                    subject.Load(pcid, keep);
                    break;
                case 13:
                    model.RemoveAll(c => c.Covers(address) && (c.Pcid == current || c.Leaf.Global));
                    subject.FlushPage(address);
                    break;
                case 14:
                    model.RemoveAll(c => c.Covers(address) && c.Pcid == pcid && !c.Leaf.Global);
                    subject.FlushPage(pcid, address);
                    break;
                case 15:
                    model.RemoveAll(c => c.Pcid == pcid && !c.Leaf.Global);
                    subject.FlushTag(pcid);
                    break;
                case 16:
                    model.RemoveAll(c => !c.Leaf.Global);
                    subject.FlushNonGlobal();
                    break;
                case 17:
                    _ = random.Next(3) == 0 ? FlushAll(subject, model) : 0;
                    break;
                case 18:
                    model.ForEach(c => c.Dead.Add(frame << 12));
                    subject.DropFrame(frame);
                    break;
                default:
                    model.ForEach(c => _ = c.Leaf.Writable && c.Dead.Add(frame << 12));
                    subject.DropWritable(frame);
                    break;
            }

            foreach (ulong at in bases.SelectMany(b => offsets.Select(o => b + o)))
            {
                Check(subject.Lookup(at, false), at, model, current, userView: false);
                Check(subject.Lookup(at, true), at, model, current, userView: true);
            }

            watch = Checked(page) && watch is { } one && one.Pcid == current ? CheckWatch(subject, one, bases, offsets)
                : Checked(page) ? watch
                : null;
            if (random.Next(4) == 0 && subject.TryWatch(User))
            {
                page[VcpuPageField.CheckedRoot] = 1;
                watch = CheckWatch(subject, new Watch(current, subject.Lookup(User, false)), bases, offsets);
            }
        }
    }

    private static bool Checked(VcpuPage page) => page[VcpuPageField.CheckedRoot] != 0;

    /// <summary>What is watched has no entry in the low half but that of its page, which stays as it is or goes.</summary>
    private static Watch CheckWatch(VirtualTlb subject, Watch watch, ulong[] bases, ulong[] offsets)
    {
        foreach (ulong at in bases.SelectMany(b => offsets.Select(o => b + o)).Where(at => at < Kernel))
        {
            Assert.Contains(subject.Lookup(at, false), at == User ? [0UL, watch.Entry] : new[] { 0UL });
            Assert.Contains(subject.Lookup(at, true), at == User ? [0UL, watch.Entry] : new[] { 0UL });
        }

        return watch;
    }

    private static int FlushAll(VirtualTlb subject, List<Cached> model)
    {
        model.Clear();
        subject.FlushAll();
        return 0;
    }

    private static void Check(ulong found, ulong address, List<Cached> model, ushort current, bool userView)
    {
        if (found == 0)
        {
            return;
        }

        ulong frame = FrameOf(found, address);
        Assert.True(
            model.Exists(c => c.Covers(address)
                && (c.Pcid == current || c.Leaf.Global)
                && (c.Leaf.User || !userView)
                && c.FrameBase + (address - c.Start) == frame
                && !c.Dead.Contains(frame)
                && (c.Leaf.Writable || (found & (ulong)PageEntry.Writable) == 0)
                && (c.Leaf.Executable || (found & (ulong)PageEntry.NoExecute) != 0)),
            $"0x{address:x} is mapped by 0x{found:x} in the {(userView ? "user" : "kernel")} view of PCID {current}");
    }

    private static ulong FrameOf(ulong entry, ulong address) => (entry & Paging.FrameMask)
        + (((PageEntry)entry).HasFlag(PageEntry.Large) ? address & 0x1F_F000 : 0);

    private static (Cached Cached, ShadowLeaf Leaf, bool View) RandomFill(Random random, ushort pcid, ulong address)
    {
        bool user = random.Next(3) != 0;
        int level = random.Next(2) + 1;
        ulong size = level == 1 ? Paging.PageSize : Paging.LargePageSize;
        ulong start = address & ~(size - 1);
        ulong frames = level == 1 ? ((ulong)(uint)random.Next(2) << 21) + ((ulong)((uint)random.Next(3) * 0xFF) << 12) : (ulong)random.Next(2) << 21;
        ShadowLeaf leaf = new()
        {
            Frame = frames + (address - start),
            Writable = random.Next(2) == 0,
            Executable = random.Next(2) == 0,
            User = user,
            Global = random.Next(3) == 0,
            GuestLevel = level,
            MayBeLarge = level == 2 && random.Next(2) == 0,
        };
        return (new Cached(pcid, start, size, frames, leaf), leaf, user && random.Next(2) == 0);
    }

    private static ShadowLeaf Leaf(
        ulong frame, bool writable = false, bool user = true, bool global = false, int level = 1, bool large = false) => new()
        {
            Frame = frame,
            Writable = writable,
            Executable = true,
            User = user,
            Global = global,
            GuestLevel = level,
            MayBeLarge = large,
        };

    private sealed record Watch(ushort Pcid, ulong Entry);

    /// <summary>A translation that the architecture allows a processor to hold.</summary>
    private sealed record Cached(ushort Pcid, ulong Start, ulong Size, ulong FrameBase, ShadowLeaf Leaf)
    {
        internal HashSet<ulong> Dead { get; } = [];

        internal bool Covers(ulong address) => address - Start < Size;
    }
}
