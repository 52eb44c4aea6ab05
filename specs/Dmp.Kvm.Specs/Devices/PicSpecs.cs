using Dmp.Kvm.Devices;

namespace Dmp.Kvm.Specs.Devices;

public class PicSpecs
{
    private int raised;
    private readonly Pic8259 pic;

    public PicSpecs()
    {
        pic = new Pic8259(() => raised++);
        Initialize(icw4: 0x01);
    }

    [Fact(DisplayName = "The lowest input wins, and blocks the others until its EOI")]
    public void Priority()
    {
        pic.SetIrq(4, true);
        pic.SetIrq(1, true);
        Assert.Equal(1, raised);
        Assert.Equal(0x31, pic.Acknowledge());
        Assert.False(pic.Output);
        pic.SetIrq(0, true);
        Assert.Equal(0x30, pic.Acknowledge());
        Eoi(0x20);
        Assert.False(pic.Output);
        Eoi(0x20);
        Assert.Equal(0x34, pic.Acknowledge());
    }

    [Fact(DisplayName = "A slave interrupt comes through the cascade; a second one follows after both EOIs")]
    public void Slave()
    {
        pic.SetIrq(12, true);
        pic.SetIrq(8, true);
        Assert.Equal(0x38, pic.Acknowledge());
        Eoi(0xA0);
        Assert.False(pic.Output);
        Eoi(0x20);
        Assert.Equal(0x3C, pic.Acknowledge());
    }

    [Fact(DisplayName = "Linux's probe reads the mask back; a masked edge waits")]
    public void Mask()
    {
        Out(0x21, 0xFB);
        Assert.Equal(0xFBu, pic.Read(0x21, 1));
        pic.SetIrq(4, true);
        Assert.False(pic.Output);
        Assert.Equal(0x10u, pic.Read(0x20, 1));
        Out(0x21, 0);
        Assert.True(pic.Output);
    }

    [Fact(DisplayName = "Without a request the acknowledge is spurious: input 7, not in service")]
    public void Spurious()
    {
        Assert.Equal(0x37, pic.Acknowledge());
        Out(0x20, 0x0B);
        Assert.Equal(0u, pic.Read(0x20, 1));
    }

    [Fact(DisplayName = "Automatic EOI leaves nothing in service")]
    public void Automatic_eoi()
    {
        Initialize(icw4: 0x03);
        pic.SetIrq(3, true);
        Assert.Equal(0x33, pic.Acknowledge());
        pic.SetIrq(5, true);
        Assert.Equal(0x35, pic.Acknowledge());
    }

    [Fact(DisplayName = "ELCR makes a line level-triggered: it asks again after EOI while asserted")]
    public void Level()
    {
        Out(0x4D1, 0xFF);
        Assert.Equal(0xDEu, pic.Read(0x4D1, 1)); // RTC and FPU stay edge-triggered.
        pic.SetIrq(9, true);
        Assert.Equal(0x39, pic.Acknowledge());
        Eoi(0xA0);
        Eoi(0x20);
        Assert.True(pic.Output);
        pic.SetIrq(9, false);
        Assert.False(pic.Output);
    }

    [Fact(DisplayName = "Rotation gives the served input the lowest priority")]
    public void Rotation()
    {
        pic.SetIrq(3, true);
        pic.Acknowledge();
        Out(0x20, 0xA0);
        pic.SetIrq(3, false);
        pic.SetIrq(3, true);
        pic.SetIrq(5, true);
        Assert.Equal(0x35, pic.Acknowledge());
    }

    [Fact(DisplayName = "Specific EOI, special mask mode and poll work as the data sheet says")]
    public void Special()
    {
        pic.SetIrq(1, true);
        pic.Acknowledge();
        pic.SetIrq(6, true);
        Out(0x20, 0x68);
        Out(0x21, 0x02);
        Assert.True(pic.Output); // Input 1 is masked, so it does not block.
        Out(0x20, 0x0C);
        Assert.Equal(0x86u, pic.Read(0x20, 1));
        Out(0x20, 0x61);
        Out(0x20, 0x0B);
        Assert.Equal(0x40u, pic.Read(0x20, 1));
    }

    private void Initialize(byte icw4)
    {
        foreach ((ushort port, byte vector, byte wiring) in ((ushort, byte, byte)[])[(0x20, 0x30, 4), (0xA0, 0x38, 2)])
        {
            Out(port, 0x11);
            Out((ushort)(port + 1), vector);
            Out((ushort)(port + 1), wiring);
            Out((ushort)(port + 1), icw4);
            Out((ushort)(port + 1), 0);
        }
    }

    private void Eoi(ushort port) => Out(port, 0x20);

    private void Out(ushort port, byte value) => pic.Write(port, 1, value);
}
