using Dmp.Kvm.Devices;
using Dmp.Kvm.Memory;
using FsCheck;
using FsCheck.Fluent;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Devices;

/// <summary>Ends of interrupts that the guest's implant does, against a local APIC whose ends are all emulated.</summary>
public class ImplantEndOfInterruptSpecs
{
    private const uint Tpr = 0x808, Ppr = 0x80A, Eoi = 0x80B, Svr = 0x80F, Isr = 0x810, Irr = 0x820;
    private const int Registers = 8;

    private readonly VcpuPage page = new();
    private readonly Side implant = new();
    private readonly ImplantEndOfInterrupt ends;

    public ImplantEndOfInterruptSpecs() => ends = new ImplantEndOfInterrupt(implant.Apic, page);

    [Fact(DisplayName = "Without an interrupt in service nothing may be ended")]
    public void None() => Assert.False(Enter());

    [Fact(DisplayName = "The end of an edge with nothing behind it is the implant's; it is over at the next exit, not before, and once")]
    public void Edge()
    {
        implant.Deliver(0x41);
        Assert.True(Enter());
        Assert.True(EndInGuest());
        Assert.False(EndInGuest());
        Assert.Equal(0x40, implant.Apic.ProcessorPriority);
        ends.AfterExit();
        Assert.Equal(0, implant.Apic.ProcessorPriority);
        ends.AfterExit();
        Assert.False(Enter());
    }

    [Fact(DisplayName = "A permission that was not used ends nothing")]
    public void Unused()
    {
        implant.Deliver(0x41);
        Assert.True(Enter());
        ends.AfterExit();
        Assert.Equal(0x40, implant.Apic.ProcessorPriority);
    }

    [Fact(DisplayName = "The end of a level exits, for the I/O APIC is to know")]
    public void Level()
    {
        implant.Deliver(0x41, level: true);
        Assert.False(Enter());
    }

    [Theory(DisplayName = "An end that releases a request exits; one that releases none does not")]
    [InlineData(0x35, 0, 0, false)]
    [InlineData(0x4F, 0, 0, false)]
    [InlineData(0x35, 0x30, 0, true)]
    [InlineData(0x45, 0x30, 0, false)]
    [InlineData(0x35, 0, 0x38, true)]
    [InlineData(0x35, 0, 0x28, false)]
    public void Waiting(byte waiting, byte taskPriority, byte lower, bool simple)
    {
        if (lower != 0)
        {
            implant.Deliver(lower);
        }

        implant.Deliver(0x41);
        implant.Write(Tpr, taskPriority);
        implant.Post(waiting);
        Assert.Equal(simple, Enter());
    }

    [Fact(DisplayName = "A request that comes while the guest runs is deliverable after the exit if the guest has ended its interrupt")]
    public void Posted_behind_the_end()
    {
        implant.Deliver(0x41);
        Assert.True(Enter());
        Assert.True(EndInGuest());
        implant.Post(0x31);
        Assert.False(implant.Apic.HasInterrupt);
        ends.AfterExit();
        Assert.True(implant.Apic.HasInterrupt);
    }

    [Fact(DisplayName = "A request that comes before the end takes the permission back")]
    public void Posted_before_the_end()
    {
        implant.Deliver(0x41);
        Assert.True(Enter());
        implant.Post(0x31);
        ends.AfterExit();
        Assert.False(Enter());
        Assert.False(EndInGuest());
        implant.Write(Eoi, 0);
        Assert.True(implant.Apic.HasInterrupt);
    }

    [Fact(DisplayName = "A request by level for the vector in service does not make its end one of a level")]
    public void Level_behind_an_edge()
    {
        implant.Deliver(0x41);
        Assert.True(Enter());
        Assert.True(EndInGuest());
        implant.Post(0x41, level: true);
        int told = implant.LevelEnds;
        ends.AfterExit();
        Assert.Equal(told, implant.LevelEnds);
        Assert.True(implant.Apic.HasInterrupt);
        Assert.True(implant.Apic.TryAcknowledge(out byte vector) && vector == 0x41);
        Assert.False(Enter());
    }

    [Fact(DisplayName = "Every post from another thread kicks, held back or not: nothing waits for the next exit by chance")]
    public void Kicks()
    {
        implant.Deliver(0x41);
        implant.Board.Machine.Kicked.Clear();
        Thread poster = new(() => implant.Post(0x31));
        poster.Start();
        poster.Join();
        Assert.False(implant.Apic.HasInterrupt);
        Assert.Equal([0], implant.Board.Machine.Kicked);
    }

    [Property(DisplayName = "Whatever comes in whatever order, the APIC is after each exit as if every end had been emulated", MaxTest = 500)]
    public void Same(int seed)
    {
        Random random = new(seed);
        Side reference = new();
        Side tested = new();
        VcpuPage own = new();
        ImplantEndOfInterrupt both = new(tested.Apic, own);
        bool inGuest = false;
        for (int step = 0; step < 60; step++)
        {
            switch (random.Next(5))
            {
                case 0 when !inGuest:
                    both.BeforeEntry();
                    inGuest = true;
                    break;
                case 1 when inGuest:
                    both.AfterExit();
                    inGuest = false;
                    Assert.Equal(reference.Describe(), tested.Describe());
                    bool taken = reference.Apic.TryAcknowledge(out byte expected);
                    Assert.Equal(taken, tested.Apic.TryAcknowledge(out byte actual));
                    Assert.Equal(expected, actual);
                    break;
                case 2 when inGuest:
                    // The guest ends its interrupt: by itself, or by an exit and another entry.
                    reference.Write(Eoi, 0);
                    if (own[VcpuPageField.SimpleEndOfInterrupt] != 0)
                    {
                        own[VcpuPageField.SimpleEndOfInterrupt] = 0;
                        break;
                    }

                    both.AfterExit();
                    tested.Write(Eoi, 0);
                    Assert.Equal(reference.Describe(), tested.Describe());
                    both.BeforeEntry();
                    break;
                case 3 when !inGuest:
                    byte priority = (byte)random.Next(0x60);
                    reference.Write(Tpr, priority);
                    tested.Write(Tpr, priority);
                    break;
                default:
                    // Any thread, at any time. A line stays level or edge: half of the vectors are the one, half the other.
                    byte vector = (byte)random.Next(0x20, 0x90);
                    reference.Post(vector, level: vector % 2 == 0);
                    tested.Post(vector, level: vector % 2 == 0);
                    break;
            }
        }

        both.AfterExit();
        Assert.Equal(reference.Describe(), tested.Describe());
        Assert.Equal(reference.LevelEnds, tested.LevelEnds);
    }

    private bool Enter()
    {
        ends.BeforeEntry();
        return page[VcpuPageField.SimpleEndOfInterrupt] != 0;
    }

    // What the implant does: one XCHG.
    private bool EndInGuest()
    {
        ref ulong field = ref page[VcpuPageField.SimpleEndOfInterrupt];
        bool was = field != 0;
        field = 0;
        return was;
    }

    private sealed class Side
    {
        private readonly ApicInterconnect interconnect = new();

        internal Side()
        {
            Board = new Board();
            Apic = new LocalApic(0, interconnect, Board.Clock, Board.Machine, new TimerQueue(0, Board.Machine));
            interconnect.LevelEndOfInterrupt = _ => LevelEnds++;
            Write(Svr, 0x1FF);
            Apic.BindToCurrentThread();
        }

        internal Board Board { get; }

        internal LocalApic Apic { get; }

        internal int LevelEnds { get; private set; }

        internal void Write(uint msr, ulong value) => Assert.True(Apic.TryWriteMsr(msr, value));

        internal void Post(byte vector, bool level = false) =>
            Assert.True(Apic.Accept(new InterruptMessage(0, false, DeliveryMode.Fixed, vector, level)));

        internal void Deliver(byte vector, bool level = false)
        {
            Post(vector, level);
            Assert.True(Apic.TryAcknowledge(out byte taken) && taken == vector);
        }

        internal string Describe()
        {
            List<string> words = [];
            for (uint register = 0; register < Registers; register++)
            {
                words.Add($"{Read(Isr + register):x} {Read(Irr + register):x}");
            }

            return $"{Read(Ppr):x} {Read(Tpr):x} {string.Join(' ', words)}";
        }

        private ulong Read(uint msr)
        {
            Assert.True(Apic.TryReadMsr(msr, out ulong value));
            return value;
        }
    }
}
