using Dmp.Kvm.Devices;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Devices;

public class LocalApicSpecs
{
    private const uint Id = 0x802, Version = 0x803, Tpr = 0x808, Ppr = 0x80A, Eoi = 0x80B, Ldr = 0x80D, Svr = 0x80F, Isr = 0x810,
        Irr = 0x820, Esr = 0x828, Icr = 0x830, LvtTimer = 0x832, LvtLint0 = 0x835, LvtError = 0x837, InitialCount = 0x838,
        CurrentCount = 0x839, Divide = 0x83E, SelfIpi = 0x83F, TscDeadline = 0x6E0;

    private readonly Board board = new(4);

    public LocalApicSpecs()
    {
        for (int vcpu = 0; vcpu < 4; vcpu++)
        {
            board.WriteMsr(Svr, 0x1FF, vcpu);
        }

        // The application processors have started, and run on other threads than this one.
        board.WriteMsr(Icr, 0xC_4500);
        board.WriteMsr(Icr, 0xC_4600);
        for (int vcpu = 1; vcpu < 4; vcpu++)
        {
            Assert.True(Apic(vcpu).TakeInit());
            Assert.True(Apic(vcpu).TryTakeStartUp(out _));
            board.WriteMsr(Svr, 0x1FF, vcpu);
        }

        Apic(0).BindToCurrentThread();
        board.Machine.Kicked.Clear();
    }

    [Property(DisplayName = "Vectors come in order of priority, each class once until its EOI")]
    public void Priority(byte[] vectors)
    {
        Board fresh = new();
        fresh.WriteMsr(Svr, 0x1FF);
        byte[] legal = [.. vectors.Where(vector => vector >= 16).Distinct()];
        foreach (byte vector in legal)
        {
            fresh.WriteMsr(SelfIpi, vector);
        }

        List<byte> served = [];
        while (fresh.Chipset.InterruptPending(0))
        {
            Assert.True(fresh.Chipset.TryAcknowledge(0, out byte vector));
            Assert.False(fresh.Chipset.TryAcknowledge(0, out _)); // What is left is not above it.
            Assert.Equal((ulong)(vector & 0xF0), fresh.ReadMsr(Ppr));
            served.Add(vector);
            fresh.WriteMsr(Eoi, 0);
        }

        Assert.Equal(legal.OrderDescending(), served);
    }

    [Fact(DisplayName = "The task priority holds back its class and below; CR8 is its upper half")]
    public void Task_priority()
    {
        Apic(0).Cr8 = 5;
        Assert.Equal(0x50ul, board.ReadMsr(Tpr));
        board.WriteMsr(SelfIpi, 0x5F);
        Assert.False(board.Chipset.HasPending(0));
        Assert.Equal(0x8000_0000ul, board.ReadMsr(Irr + 2));
        board.WriteMsr(Tpr, 0x4F);
        Assert.True(board.Chipset.HasPending(0));
        Assert.Equal([0x5F], board.AcknowledgeAll());
        Assert.Equal(0x8000_0000ul, board.ReadMsr(Isr + 2));
    }

    [Fact(DisplayName = "What the manual forbids is #GP: reserved bits, read-only and xAPIC registers, leaving x2APIC sideways")]
    public void General_protection()
    {
        LocalApic apic = Apic(0);
        Assert.False(apic.TryWriteMsr(Eoi, 1));
        Assert.False(apic.TryWriteMsr(Tpr, 0x100));
        Assert.False(apic.TryWriteMsr(Id, 0));
        Assert.False(apic.TryWriteMsr(Version, 0));
        Assert.False(apic.TryWriteMsr(0x80E, 0));
        Assert.False(apic.TryWriteMsr(LvtTimer, 1UL << 32));
        Assert.False(apic.TryReadMsr(Eoi, out _));
        Assert.False(apic.TryReadMsr(0x831, out _));
        Assert.False(apic.TryReadMsr(SelfIpi, out _));
        Assert.False(apic.TryReadMsr(0x800, out _));
        Assert.Equal(0xFEE0_0D00ul, apic.Base);
        Assert.False(apic.TryWriteBase(0xFEE0_0900));
        Assert.False(apic.TryWriteBase(0xFEE0_0500));
        Assert.True(apic.TryWriteBase(0xFEE0_0100));
        Assert.False(apic.TryWriteBase(0xFEE0_0D00));
        Assert.True(apic.TryWriteBase(0xFEE0_0900));
        Assert.False(apic.TryReadMsr(Id, out _));
        Assert.True(apic.TryWriteBase(0xFEE0_0D00));
        Assert.Equal(0x0005_0014ul, board.ReadMsr(Version));
    }

    [Fact(DisplayName = "The xAPIC window shows the same registers, each vCPU its own, with the 8-bit ids and both destination formats")]
    public void Xapic()
    {
        for (int vcpu = 0; vcpu < 4; vcpu++)
        {
            Assert.True(Apic(vcpu).TryWriteBase(0xFEE0_0000));
            Assert.True(Apic(vcpu).TryWriteBase(0xFEE0_0800));
            Mmio(0xF0, 0x1FF, vcpu);
            Mmio(0xD0, 1u << (24 + vcpu), vcpu);
            Assert.Equal((ulong)vcpu << 24, board.Chipset.ReadMmio(vcpu, 0xFEE0_0020, 4));
        }

        Mmio(0x310, 0x0A00_0000);
        Mmio(0x300, 0x0840); // Logical flat, fixed, 0x40: vCPUs 1 and 3
        Assert.Equal([1, 3], board.Machine.Kicked);
        Assert.Equal([0x40], board.AcknowledgeAll(1));
        Mmio(0xB0, 0, 1);
        Assert.Equal(0ul, board.Chipset.ReadMmio(1, 0xFEE0_0120, 4));
        Mmio(0xE0, 0, 2);
        Mmio(0xD0, 0x2100_0000, 2);
        Mmio(0x310, 0x2100_0000);
        Mmio(0x300, 0x0841); // Logical cluster 2, member 0; the flat ones read it as vCPU 0 (and 5).
        Assert.Equal([0x41], board.AcknowledgeAll(2));
        Assert.Equal([0x41], board.AcknowledgeAll(0));
        Mmio(0x310, 0xFF00_0000);
        Mmio(0x300, 0x0042); // Broadcast
        Assert.True(Apic(3).HasPending);
        Mmio(0x3F0, 1);
        Mmio(0x280, 0);
        Assert.Equal(0x80ul, board.Chipset.ReadMmio(0, 0xFEE0_0280, 4)); // No self IPI here.
    }

    [Fact(DisplayName = "IPIs: physical, logical and all shorthands; others are kicked once a new bit is set, the own thread never")]
    public void Interprocessor_interrupts()
    {
        board.WriteMsr(Icr, (2UL << 32) | 0xF1);
        board.WriteMsr(Icr, (2UL << 32) | 0xF1);
        Assert.Equal([2], board.Machine.Kicked);
        board.WriteMsr(Icr, (0b1010UL << 32) | 0x8F2);
        Assert.Equal([2, 1, 3], board.Machine.Kicked);
        board.WriteMsr(Icr, (0x0001_0002UL << 32) | 0x8F3); // Another cluster
        board.WriteMsr(Icr, 0x4_00F4);
        Assert.Equal([2, 1, 3], board.Machine.Kicked);
        Assert.Equal([0xF4], board.AcknowledgeAll(0));
        board.WriteMsr(Icr, 0xC_00F5);
        board.WriteMsr(Icr, 0x8_00F6);
        Assert.Equal([2, 1, 3, 1, 2, 3, 1, 2, 3], board.Machine.Kicked);
        Assert.Equal([0xF6], board.AcknowledgeAll(3));
        Assert.Equal(1ul << 3, board.ReadMsr(Ldr, 3));
    }

    [Fact(DisplayName = "Lowest priority goes to the least busy vCPU, and round among equals")]
    public void Lowest_priority()
    {
        Apic(0).Cr8 = 1;
        Apic(2).Cr8 = 1;
        board.WriteMsr(Icr, (0b1111UL << 32) | 0x970);
        board.WriteMsr(Icr, (0b1111UL << 32) | 0x971);
        Assert.Equal([1, 3], board.Machine.Kicked.Order());
    }

    [Fact(DisplayName = "NMI, INIT, SIPI: the first SIPI after INIT counts, INIT is taken before it, and a running vCPU ignores SIPIs")]
    public void Start_up()
    {
        LocalApic target = Apic(1);
        board.WriteMsr(Icr, (1UL << 32) | 0x4400);
        Assert.True(target.HasPending);
        Assert.True(target.TakeNmi());
        Assert.False(target.TakeNmi());
        board.WriteMsr(Icr, (1UL << 32) | 0x4611);
        Assert.False(target.HasPending);
        board.WriteMsr(Icr, (1UL << 32) | 0xC500);
        board.WriteMsr(Icr, (1UL << 32) | 0x8500); // De-assert
        board.WriteMsr(Icr, (1UL << 32) | 0x4699);
        board.WriteMsr(Icr, (1UL << 32) | 0x46AA);
        Assert.False(target.TryTakeStartUp(out _));
        Assert.True(target.TakeInit());
        Assert.True(target.IsWaitingForStartUp);
        Assert.True(target.TryTakeStartUp(out byte page));
        Assert.Equal(0x99, page);
        Assert.False(target.IsWaitingForStartUp);
        Assert.Equal(0xFFul, board.ReadMsr(Svr, 1));
        Assert.False(target.HasPending);
    }

    [Fact(DisplayName = "INIT forgets what was pending and disables the APIC, keeps its mode, and nothing but a SIPI reaches who waits for it")]
    public void Waiting_for_start_up()
    {
        LocalApic target = Apic(2);
        board.WriteMsr(Icr, (2UL << 32) | 0x41);
        board.WriteMsr(Icr, (2UL << 32) | 0x4400);
        board.WriteMsr(LvtTimer, 0x200EC, 2);
        board.WriteMsr(InitialCount, 1000, 2);
        board.WriteMsr(Icr, (2UL << 32) | 0x4500);
        board.WriteMsr(Icr, (2UL << 32) | 0x42);
        board.WriteMsr(Icr, (2UL << 32) | 0x4400);
        Assert.True(target.TakeInit());
        Assert.False(target.TakeInit());
        board.Machine.Kicked.Clear();
        board.WriteMsr(Icr, 0xC_0043);
        board.WriteMsr(Icr, (2UL << 32) | 0x4400);
        Assert.Equal([1, 3], board.Machine.Kicked);
        board.RunTo(10_000, vcpu: 2);
        Assert.False(target.HasPending);
        board.WriteMsr(Icr, (2UL << 32) | 0x4608);
        Assert.Equal([1, 3, 2], board.Machine.Kicked);
        Assert.True(target.HasInit);
        Assert.True(target.TryTakeStartUp(out byte page));
        Assert.Equal(8, page);
        Assert.False(target.TryTakeStartUp(out _));
        Assert.False(target.HasPending);
        Assert.Equal(0xFEE0_0C00ul, target.Base);
        Assert.All(Enumerable.Range(0, 8), word => Assert.Equal(0ul, board.ReadMsr(Irr + (uint)word, 2)));
        Assert.Equal(0x1_0000ul, board.ReadMsr(LvtTimer, 2));
    }

    [Fact(DisplayName = "An NMI stays pending until it is taken, several are one, and only the first kicks")]
    public void Nmi()
    {
        board.WriteMsr(Icr, 0xC_4400);
        board.WriteMsr(Icr, (3UL << 32) | 0x4400);
        Assert.Equal([1, 2, 3], board.Machine.Kicked);
        Assert.False(Apic(0).HasNmi);
        Assert.True(Apic(3).HasNmi);
        Assert.True(Apic(3).TakeNmi());
        Assert.False(Apic(3).HasNmi);
        board.WriteMsr(Icr, (3UL << 32) | 0x4400);
        Assert.True(Apic(3).TakeNmi());
        Assert.False(Apic(3).TakeNmi());
    }

    [Fact(DisplayName = "An INIT of the bootstrap processor resets the machine: there is no firmware that it could start")]
    public void Init_of_the_bootstrap_processor()
    {
        board.WriteMsr(Icr, 0x4500, vcpu: 1);
        Assert.Equal(["INIT of the bootstrap processor"], board.Machine.Events);
        Assert.False(Apic(0).HasInit);
    }

    [Theory(DisplayName = "A halt ends for INIT, for an NMI that is not held back, and for an interrupt if IF is 1")]
    [InlineData(0x4500, false, true, true)]
    [InlineData(0x4400, false, false, true)]
    [InlineData(0x4400, true, true, false)]
    [InlineData(0x0041, true, true, true)]
    [InlineData(0x0041, false, false, false)]
    public void Halts(uint command, bool interruptFlag, bool nmiBlocked, bool ends)
    {
        Assert.False(board.Chipset.TryEndHalt(1, interruptFlag, nmiBlocked));
        board.WriteMsr(Icr, (1UL << 32) | command);
        Assert.Equal(ends, board.Chipset.TryEndHalt(1, interruptFlag, nmiBlocked));
    }

    [Fact(DisplayName = "Another vCPU ends a halt, or the next one, once, whatever IF is")]
    public void Wake_up()
    {
        Apic(1).PostWakeUp();
        Assert.Equal([1], board.Machine.Kicked);
        Assert.True(board.Chipset.TryEndHalt(1, interruptFlag: false, nmiBlocked: true));
        Assert.False(board.Chipset.TryEndHalt(1, interruptFlag: true, nmiBlocked: false));
    }

    [Fact(DisplayName = "INITs and SIPIs of another thread: each start takes the first vector behind its INIT, once")]
    public void Starting_again_and_again()
    {
        const int Starts = 20_000;
        LocalApic target = Apic(1);
        int started = 0;
        Thread other = new(() =>
        {
            SpinWait wait = default;
            for (int start = 1; start <= Starts; start++)
            {
                ulong first = (ulong)(start & 0x7F) << 1;
                board.WriteMsr(Icr, (1UL << 32) | 0xC500);
                board.WriteMsr(Icr, (1UL << 32) | 0x8500);
                board.WriteMsr(Icr, (1UL << 32) | 0x4600 | first);
                board.WriteMsr(Icr, (1UL << 32) | 0x4600 | first | 1);
                while (Volatile.Read(ref started) != start)
                {
                    wait.SpinOnce(sleep1Threshold: -1);
                }
            }
        });
        other.Start();
        SpinWait idle = default;
        while (started < Starts)
        {
            if (target.TakeInit())
            {
                Assert.True(target.IsWaitingForStartUp);
            }

            if (target.TryTakeStartUp(out byte vector))
            {
                Assert.Equal((byte)(((started + 1) & 0x7F) << 1), vector);
                Assert.False(target.HasInit || target.IsWaitingForStartUp);
                Volatile.Write(ref started, started + 1);
            }
            else
            {
                idle.SpinOnce(sleep1Threshold: -1);
            }
        }

        other.Join();
    }

    [Property(DisplayName = "A periodic timer keeps to its grid however late it is served: ticks are dropped, never moved")]
    public void No_drift(ushort period, ushort[] latenesses)
    {
        Board fresh = new();
        fresh.WriteMsr(Svr, 0x1FF);
        fresh.WriteMsr(Divide, 0b1011); // 1
        fresh.WriteMsr(LvtTimer, 0x200EC);
        long length = period + 1000;
        fresh.WriteMsr(InitialCount, (ulong)length);
        foreach (ushort lateness in latenesses)
        {
            long due = fresh.Chipset.NextDeadline(0);
            Assert.Equal(0, due % length);
            Assert.InRange(due, fresh.Clock.Nanoseconds + 1, fresh.Clock.Nanoseconds + length);
            fresh.RunTo(due + lateness);
            Assert.Equal([0xEC], fresh.AcknowledgeAll());
            fresh.WriteMsr(Eoi, 0);
        }
    }

    [Fact(DisplayName = "Each vCPU has a timer of its own, and is the one that is kicked for it")]
    public void Timers_are_apart()
    {
        for (int vcpu = 0; vcpu < 4; vcpu++)
        {
            board.WriteMsr(LvtTimer, 0x400EC, vcpu);
            board.WriteMsr(TscDeadline, (ulong)(1000 * (vcpu + 1)), vcpu);
            Assert.Equal(500 * (vcpu + 1), board.Machine.Arranged[vcpu]);
        }

        board.RunTo(1000, vcpu: 1);
        Assert.Equal([0xEC], board.AcknowledgeAll(1));
        Assert.Empty(board.AcknowledgeAll(0));
        Assert.Empty(board.AcknowledgeAll(2));
    }

    [Fact(DisplayName = "The TSC deadline interrupts when the TSC gets there, at once when it has, and 0 disarms")]
    public void Tsc_deadline()
    {
        board.WriteMsr(TscDeadline, 5000);
        Assert.Equal(0ul, board.ReadMsr(TscDeadline)); // Not in that mode yet.
        board.WriteMsr(LvtTimer, 0x400EC);
        board.WriteMsr(TscDeadline, 5001);
        Assert.Equal(2501, board.Machine.Arranged[0]);
        Assert.Equal(2501, board.Chipset.NextDeadline(0));
        board.RunTo(2500);
        Assert.False(board.Chipset.HasPending(0));
        board.RunTo(2501);
        Assert.Equal([0xEC], board.AcknowledgeAll());
        Assert.Equal(0ul, board.ReadMsr(TscDeadline));
        board.WriteMsr(Eoi, 0);
        board.WriteMsr(TscDeadline, 1);
        Assert.Equal([0xEC], board.AcknowledgeAll());
        board.WriteMsr(TscDeadline, 100_000);
        board.WriteMsr(TscDeadline, 0);
        Assert.Equal(TimerQueue.Never, board.Machine.Arranged[0]);
        board.WriteMsr(TscDeadline, ulong.MaxValue);
        Assert.True(board.Chipset.NextDeadline(0) > 1L << 60);
    }

    [Fact(DisplayName = "One-shot and periodic timers count nanoseconds times the divisor")]
    public void Counting_timer()
    {
        board.WriteMsr(Divide, 0b0011); // 16
        board.WriteMsr(LvtTimer, 0xEC);
        board.WriteMsr(InitialCount, 1000);
        board.RunTo(8000);
        Assert.Equal(500ul, board.ReadMsr(CurrentCount));
        Assert.Equal(16_000, board.Machine.Arranged[0]);
        board.RunTo(16_000);
        Assert.Equal([0xEC], board.AcknowledgeAll());
        Assert.Equal(0ul, board.ReadMsr(CurrentCount));
        board.WriteMsr(Eoi, 0);
        board.WriteMsr(LvtTimer, 0x200EC);
        board.WriteMsr(InitialCount, 1000);
        board.RunTo(16_000 + (16_000 * 3) + 10);
        Assert.Equal([0xEC], board.AcknowledgeAll());
        Assert.Equal(16_000 * 5, board.Machine.Arranged[0]);
        board.WriteMsr(LvtTimer, 0x100EC);
        board.WriteMsr(InitialCount, 0);
        Assert.Equal(TimerQueue.Never, board.Chipset.NextDeadline(0));
    }

    [Fact(DisplayName = "An illegal vector is an error, told by ESR and the error interrupt")]
    public void Errors()
    {
        board.WriteMsr(LvtError, 0xFE);
        board.WriteMsr(Icr, (1UL << 32) | 0x05);
        Assert.Equal([0xFE], board.AcknowledgeAll());
        Assert.Equal(0ul, board.ReadMsr(Esr));
        board.WriteMsr(Esr, 0);
        Assert.Equal(0x20ul, board.ReadMsr(Esr));
        board.WriteMsr(Esr, 0);
        Assert.Equal(0ul, board.ReadMsr(Esr));
    }

    [Fact(DisplayName = "LINT0 as ExtINT passes the 8259A on, from reset on the bootstrap processor and never where it is masked")]
    public void Virtual_wire()
    {
        Board fresh = new(2);
        foreach (byte value in (byte[])[0x11, 0x30, 0x04, 0x01, 0x00])
        {
            fresh.Out(value == 0x11 ? (ushort)0x20 : (ushort)0x21, value);
        }

        fresh.Chipset.SetIrq(4, true);
        Assert.Equal([0], fresh.Machine.Kicked);
        Assert.False(fresh.Chipset.InterruptPending(1));
        fresh.WriteMsr(LvtLint0, 0x10700);
        Assert.False(fresh.Chipset.InterruptPending(0));
        fresh.WriteMsr(LvtLint0, 0x700);
        Assert.Equal([0x34], fresh.AcknowledgeAll());
    }

    [Fact(DisplayName = "Posts from many threads are all taken, none twice")]
    public async Task Concurrent_posts()
    {
        const int Rounds = 20_000;
        int[] posted = new int[4];
        int[] taken = new int[4];
        Task[] posters = [.. Enumerable.Range(1, 3).Select(vcpu => Task.Run(() =>
        {
            LocalApic sender = Apic(vcpu);
            for (int i = 0; i < Rounds; i++)
            {
                // A vector is posted again only after it was taken, so that posts and takes can be counted.
                sender.TryWriteMsr(Icr, (ulong)(0x40 + vcpu));
                Interlocked.Increment(ref posted[vcpu]);
                SpinWait wait = default;
                while (Volatile.Read(ref taken[vcpu]) < i + 1)
                {
                    wait.SpinOnce();
                }
            }
        }))];
        Task all = Task.WhenAll(posters);
        SpinWait idle = default;
        while (!all.IsCompleted)
        {
            if (Apic(0).HasPending && Apic(0).TryAcknowledge(out byte vector))
            {
                board.WriteMsr(Eoi, 0);
                Interlocked.Increment(ref taken[vector - 0x40]);
            }
            else
            {
                idle.SpinOnce(sleep1Threshold: -1);
            }
        }

        await all;
        Assert.Equal([0, Rounds, Rounds, Rounds], taken);
        Assert.Equal(posted, taken);
    }

    private LocalApic Apic(int vcpu) => board.Chipset.LocalApics[vcpu];

    private void Mmio(uint offset, uint value, int vcpu = 0) =>
        board.Chipset.WriteMmio(vcpu, DeviceLayout.LocalApicBase + offset, 4, value);
}
