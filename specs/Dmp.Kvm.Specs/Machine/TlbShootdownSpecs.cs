using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Specs.Memory;

namespace Dmp.Kvm.Specs.Machine;

public sealed class TlbShootdownSpecs
{
    private const ulong Address = 0x0000_0040_0000_0000;
    private const ulong Frames = 1024;
    private const ulong Frame = 5;
    private const int Own = 0;
    private const int Other = 1;
    private const int Third = 2;

    private readonly List<int> kicked = [];
    private readonly TlbShootdown shootdown;
    private readonly VirtualTlb tlb = NewTlb();
    private Action<int> onKick = _ => { };

    public TlbShootdownSpecs() => shootdown = new TlbShootdown(3, Frames, vcpu =>
    {
        kicked.Add(vcpu);
        onKick(vcpu);
    });

    [Fact(DisplayName = "A vCPU outside guest code is not kicked and not waited for, and drops the frame before it enters")]
    public void Outside()
    {
        Map(Other, writable: true);
        shootdown.Shoot(Frame, Own, writableOnly: false);

        Assert.Empty(kicked);
        Assert.False(shootdown.TryEnter(Other));
        shootdown.Serve(Other, tlb);
        Assert.Equal(0UL, tlb.Lookup(Address, userView: true));
        Assert.True(shootdown.TryEnter(Other));
    }

    [Fact(DisplayName = "A vCPU in guest code is kicked, and waited for until it is out")]
    public void Inside()
    {
        Map(Other, writable: true);
        Assert.True(shootdown.TryEnter(Other));
        bool left = false;
        onKick = vcpu =>
        {
            left = true;
            shootdown.Leave(vcpu);
        };
        shootdown.Shoot(Frame, Own, writableOnly: false);

        Assert.True(left);
        Assert.Equal([Other], kicked);
        Assert.False(shootdown.TryEnter(Other));
    }

    [Fact(DisplayName = "Only vCPUs that may have mapped the frame are asked, and the one that asks is not")]
    public void Others()
    {
        Map(Own, writable: true);
        Map(Other, writable: true);
        Assert.True(shootdown.TryEnter(Third));
        shootdown.Shoot(Frame, Own, writableOnly: false);

        Assert.Equal(1, shootdown.Requests);
        Assert.False(shootdown.HasRequests(Own));
        Assert.True(shootdown.HasRequests(Other));
        Assert.False(shootdown.HasRequests(Third));
        Assert.Empty(kicked);
    }

    [Fact(DisplayName = "Who mapped the 2 MiB around a frame is asked for each frame in it")]
    public void Large()
    {
        const ulong Neighbour = 511;
        const ulong Beyond = 512;
        shootdown.NoteUse(Frame, Other, large: true);
        shootdown.Shoot(Neighbour, Own, writableOnly: false);
        Assert.True(shootdown.HasRequests(Other));
        shootdown.Serve(Other, tlb);
        shootdown.Shoot(Beyond, Own, writableOnly: false);
        Assert.False(shootdown.HasRequests(Other));
    }

    [Fact(DisplayName = "A vCPU that was not asked to run for long drops everything instead of what came first")]
    public void Long_halt()
    {
        const int Many = 1000;
        Map(Other, writable: true);
        shootdown.Shoot(Frame, Own, writableOnly: false);
        shootdown.NoteUse(Frame + 1, Other, large: false);
        for (int request = 0; request < Many; request++)
        {
            shootdown.Shoot(Frame + 1, Own, writableOnly: false);
        }

        shootdown.Serve(Other, tlb);
        Assert.Equal(0UL, tlb.Lookup(Address, userView: true));
        Assert.True(shootdown.TryEnter(Other));
    }

    [Fact(DisplayName = "Where only writing is at stake, read-only entries stay")]
    public void Writable_only()
    {
        Map(Other, writable: false);
        shootdown.Shoot(Frame, Own, writableOnly: true);
        shootdown.Serve(Other, tlb);
        Assert.NotEqual(0UL, tlb.Lookup(Address, userView: true));

        Map(Other, writable: true);
        shootdown.Shoot(Frame, Own, writableOnly: true);
        shootdown.Serve(Other, tlb);
        Assert.Equal(0UL, tlb.Lookup(Address, userView: true));
    }

    [Fact(DisplayName = "A frame that becomes code is written by no vCPU any more, whenever each of them fills its TLB, enters and leaves")]
    public void Race()
    {
        const int Writers = 3;
        const int Rounds = 3000;
        using GuestMemory memory = GuestMemory.Create(4UL << 20);
        CodePages code = new(memory);
        TlbShootdown several = new(Writers + 1, Frames, _ => { });
        long writes = 0;
        bool over = false;
        Thread[] threads = [.. Enumerable.Range(1, Writers).Select(vcpu => new Thread(() => Write(vcpu)))];
        Array.ForEach(threads, thread => thread.Start());
        long duringScans = 0;
        for (int round = 0; round < Rounds; round++)
        {
            lock (code.Changes)
            {
                code.Claim(Frame);
                several.Shoot(Frame, Own, writableOnly: true);
                long before = Volatile.Read(ref writes);
                Thread.SpinWait(50);
                duringScans += Volatile.Read(ref writes) - before;
                code.Add(Frame, Address, [], spill: 0);
                Assert.True(code.Close(Frame));
                several.Shoot(Frame, Own, writableOnly: false);
                Assert.True(code.Remove(Frame, out _));
            }

            Thread.Yield();
        }

        Volatile.Write(ref over, true);
        Array.ForEach(threads, thread => thread.Join());
        Assert.Equal(0, duringScans);
        Assert.NotEqual(0, writes);

        // What a vCPU does: fill by what the frame is, drop what it was asked to, enter, write if the entry says so, leave.
        void Write(int vcpu)
        {
            VirtualTlb own = NewTlb();
            while (!Volatile.Read(ref over))
            {
                several.NoteUse(Frame, vcpu, large: false);
                bool writable = !code.Contains(Frame);
                if (((PageEntry)own.Lookup(Address, userView: true)).Has(PageEntry.Writable) || writable)
                {
                    own.Fill(Address, Leaf(writable), userView: true);
                }

                while (!several.TryEnter(vcpu))
                {
                    several.Serve(vcpu, own);
                }

                for (int access = 0; access < 10; access++)
                {
                    if (((PageEntry)own.Lookup(Address, userView: true)).Has(PageEntry.Writable))
                    {
                        _ = Interlocked.Increment(ref writes);
                    }
                }

                several.Leave(vcpu);
            }
        }
    }

    private static VirtualTlb NewTlb() => new(new FakeShadowMemory(), Frames, monitorSlot: 256, monitorEntry: 1);

    private static ShadowLeaf Leaf(bool writable) =>
        new() { Frame = Frame << Paging.PageShift, Writable = writable, User = true, GuestLevel = 1 };

    private void Map(int vcpu, bool writable)
    {
        shootdown.NoteUse(Frame, vcpu, large: false);
        tlb.Fill(Address, Leaf(writable), userView: true);
    }
}
