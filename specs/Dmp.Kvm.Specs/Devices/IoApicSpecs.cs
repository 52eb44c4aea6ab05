using System.Text;
using Dmp.Kvm.Devices;

namespace Dmp.Kvm.Specs.Devices;

public class IoApicSpecs
{
    private const ulong Level = 1 << 15, Masked = 1 << 16, RemoteIrr = 1 << 14;
    private const uint Eoi = 0x80B;
    private readonly Board board = new(2);

    public IoApicSpecs()
    {
        board.WriteMsr(0x80F, 0x1FF, 0);
        board.WriteMsr(0x80F, 0x1FF, 1);
        board.Chipset.LocalApics[0].BindToCurrentThread();
    }

    [Fact(DisplayName = "After reset there are 24 masked entries and version 0x20")]
    public void Reset()
    {
        board.Chipset.Mmio.Write(DeviceLayout.IoApicBase, 4, 1);
        Assert.Equal(0x0017_0020ul, board.Chipset.Mmio.Read(DeviceLayout.IoApicBase + 0x10, 4));
        Assert.All(Enumerable.Range(0, IoApic.Pins), pin => Assert.Equal(Masked, board.Redirection(pin)));
    }

    [Fact(DisplayName = "An edge is delivered once; on a masked pin it is lost")]
    public void Edge()
    {
        board.Redirect(4, 0x34 | Masked);
        board.Chipset.SetIrq(4, true);
        board.Redirect(4, 0x34);
        Assert.Empty(board.AcknowledgeAll());
        board.Chipset.SetIrq(4, false);
        board.Chipset.SetIrq(4, true);
        board.Chipset.SetIrq(4, true);
        Assert.Equal([0x34], board.AcknowledgeAll());
        board.WriteMsr(Eoi, 0);
        Assert.Empty(board.AcknowledgeAll());
    }

    [Fact(DisplayName = "A level stays in remote IRR until EOI and comes again while asserted")]
    public void Level_triggered()
    {
        board.Redirect(9, 0x39 | Level);
        board.Chipset.SetIrq(9, true);
        Assert.Equal(0x39 | Level | RemoteIrr, board.Redirection(9));
        Assert.Equal([0x39], board.AcknowledgeAll());
        board.WriteMsr(Eoi, 0);
        Assert.Equal([0x39], board.AcknowledgeAll());
        board.Chipset.SetIrq(9, false);
        board.WriteMsr(Eoi, 0);
        Assert.Equal(0x39 | Level, board.Redirection(9));
        Assert.Empty(board.AcknowledgeAll());
    }

    [Fact(DisplayName = "A level that was masked is delivered at unmasking; making the entry edge-triggered forgets remote IRR")]
    public void Masked_level()
    {
        board.Redirect(9, 0x39 | Level | Masked);
        board.Chipset.SetIrq(9, true);
        board.Redirect(9, 0x39 | Level);
        Assert.NotEqual(0ul, board.Redirection(9) & RemoteIrr);
        board.Redirect(9, 0x39 | Masked);
        Assert.Equal(0x39 | Masked, board.Redirection(9));
    }

    [Fact(DisplayName = "IRQ 0 comes in at pin 2; a destination that accepts nothing leaves no remote IRR")]
    public void Routing()
    {
        board.Redirect(2, 0x30);
        board.Redirect(9, 0x39 | Level | (7UL << 56));
        board.Chipset.SetIrq(0, true);
        board.Chipset.SetIrq(9, true);
        Assert.Equal([0x30], board.AcknowledgeAll());
        Assert.Equal(0ul, board.Redirection(9) & RemoteIrr);
    }

    [Theory(DisplayName = "A pin reaches any vCPU: physical, logical, lowest priority, everybody, in x2APIC mode")]
    [InlineData(0x0000_0000_0000_0041, new[] { 0 })]
    [InlineData(0x0300_0000_0000_0041, new[] { 3 })]
    [InlineData(0x0400_0000_0000_0041, new int[0])]
    [InlineData(0x0A00_0000_0000_0841, new[] { 1, 3 })]
    [InlineData(0x0F00_0000_0000_0941, new[] { 2 })]
    [InlineData(0x0300_0000_0000_0141, new[] { 3 })]
    [InlineData(0xFF00_0000_0000_0041, new[] { 0, 1, 2, 3 })]
    public void Destinations(ulong entry, int[] reached)
    {
        Board four = Four(x2Apic: true);
        four.Redirect(4, entry);
        four.Chipset.SetIrq(4, true);
        Assert.Equal(reached, Enumerable.Range(0, 4).Where(vcpu => four.AcknowledgeAll(vcpu) is [0x41]));
    }

    [Theory(DisplayName = "A pin reaches any vCPU: logical flat and cluster, in xAPIC mode")]
    [InlineData(0xFFFF_FFFF, 0x0A00_0000_0000_0841, new[] { 1, 3 })]
    [InlineData(0xFFFF_FFFF, 0x0F00_0000_0000_0941, new[] { 2 })]
    [InlineData(0xFFFF_FFFF, 0x0200_0000_0000_0041, new[] { 2 })]
    [InlineData(0x0FFF_FFFF, 0x0800_0000_0000_0841, new[] { 3 })]
    [InlineData(0x0FFF_FFFF, 0x1800_0000_0000_0841, new int[0])]
    [InlineData(0x0FFF_FFFF, 0xFF00_0000_0000_0841, new[] { 0, 1, 2, 3 })]
    public void Xapic_destinations(uint format, ulong entry, int[] reached)
    {
        Board four = Four(x2Apic: false);
        for (int vcpu = 0; vcpu < 4; vcpu++)
        {
            four.Chipset.WriteMmio(vcpu, DeviceLayout.LocalApicBase + 0xE0, 4, format);
            four.Chipset.WriteMmio(vcpu, DeviceLayout.LocalApicBase + 0xD0, 4, 1u << (24 + vcpu));
        }

        four.Redirect(4, entry);
        four.Chipset.SetIrq(4, true);
        Assert.Equal(reached, Enumerable.Range(0, 4).Where(vcpu => four.AcknowledgeAll(vcpu) is [0x41]));
    }

    [Fact(DisplayName = "The end of a level counts whichever vCPU it comes from, and what follows goes where the entry points by then")]
    public void Rerouted_level()
    {
        Board four = Four(x2Apic: true);
        four.Redirect(9, 0x39 | Level | (1UL << 56));
        four.Chipset.SetIrq(9, true);
        Assert.Equal([0x39], four.AcknowledgeAll(1));
        four.Redirect(9, 0x39 | Level | (2UL << 56));
        Assert.Empty(four.AcknowledgeAll(2));
        four.WriteMsr(Eoi, 0, vcpu: 1);
        Assert.Empty(four.AcknowledgeAll(1));
        Assert.Equal([0x39], four.AcknowledgeAll(2));
        four.Chipset.SetIrq(9, false);
        four.WriteMsr(Eoi, 0, vcpu: 2);
        Assert.Equal(0ul, four.Redirection(9) & RemoteIrr);
    }

    [Fact(DisplayName = "The serial port's interrupt arrives at the vCPU its entry names, with a kick")]
    public void Serial_end_to_end()
    {
        Board started = new(2);
        started.WriteMsr(0x80F, 0x1FF, 0);
        started.Redirect(4, 0x24);
        started.Out(0x3FC, 0x0B);
        started.Out(0x3F9, 0x01);
        started.Console.PutInput("x"u8);
        Assert.Equal([0], started.Machine.Kicked);
        Assert.Equal([0x24], started.AcknowledgeAll());
        Assert.Equal('x', (char)started.In(0x3F8));
        started.Out(0x3F8, (byte)'y');
        byte[] output = new byte[4];
        Assert.Equal("y", Encoding.ASCII.GetString(output, 0, started.Console.TakeOutput(output)));
    }

    [Fact(DisplayName = "A PIT tick runs through the chipset: deadline, kick arranged, interrupt")]
    public void Timer_end_to_end()
    {
        board.Redirect(2, 0x30);
        board.Out(0x43, 0x30);
        board.Out(0x40, 0xA9);
        board.Out(0x40, 0x04);
        long deadline = board.Chipset.NextDeadline(0);
        Assert.Equal(deadline, board.Machine.Arranged[0]);
        board.RunTo(deadline);
        Assert.Equal([0x30], board.AcknowledgeAll());
    }

    // All have started; vCPU 2 is the least busy.
    private static Board Four(bool x2Apic)
    {
        Board four = new(4);
        for (int vcpu = 0; vcpu < 4; vcpu++)
        {
            LocalApic apic = four.Chipset.LocalApics[vcpu];
            if (vcpu != 0)
            {
                four.WriteMsr(0x830, ((ulong)vcpu << 32) | 0x4500);
                four.WriteMsr(0x830, ((ulong)vcpu << 32) | 0x4600);
                Assert.True(apic.TakeInit() && apic.TryTakeStartUp(out _));
            }

            four.WriteMsr(0x80F, 0x1FF, vcpu);
            apic.Cr8 = vcpu == 2 ? (byte)1 : (byte)2;
        }

        for (int vcpu = 0; vcpu < 4 && !x2Apic; vcpu++)
        {
            LocalApic apic = four.Chipset.LocalApics[vcpu];
            Assert.True(apic.TryWriteBase(DeviceLayout.LocalApicBase));
            Assert.True(apic.TryWriteBase(DeviceLayout.LocalApicBase | 0x800));
            four.Chipset.WriteMmio(vcpu, DeviceLayout.LocalApicBase + 0xF0, 4, 0x1FF);
            apic.Cr8 = vcpu == 2 ? (byte)1 : (byte)2;
        }

        return four;
    }
}
