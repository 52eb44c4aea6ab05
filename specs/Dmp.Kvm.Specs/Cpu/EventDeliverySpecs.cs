using Dmp.Kvm.Cpu;
using Dmp.Kvm.Specs.Emulation;

namespace Dmp.Kvm.Specs.Cpu;

public sealed class EventDeliverySpecs : IDisposable
{
    private readonly EmulatedCpu cpu = new();

    public void Dispose() => cpu.Dispose();

    [Fact(DisplayName = "A page fault of user code arrives on RSP0 with error code, frame and CR2")]
    public void UserFault()
    {
        cpu.SetGate(14);
        EnterUser();
        Assert.True(cpu.Events.DeliverFault(new GuestFault(ExceptionVector.PageFault, 6, 0x1234)));
        ulong frame = EmulatedCpu.Rsp0 - 48;
        Assert.Equal(frame, cpu.Registers.Regs.Rsp);
        Assert.Equal(
            [6, EmulatedCpu.UserBase, 0x33, 0x202, EmulatedCpu.UserStack, 0x2B],
            Enumerable.Range(0, 6).Select(word => cpu.Word(frame + (ulong)(word * 8))));
        Assert.Equal(0x1234UL, cpu.State.Cr2);
        Assert.Equal((0, false, 0x10, 0), (cpu.State.Cpl, cpu.State.InterruptFlag, cpu.State.CodeSelector, cpu.State.StackSelector));
        Assert.Equal(EmulatedCpu.Handlers + (14 * 16), cpu.Registers.Regs.Rip);
    }

    [Fact(DisplayName = "An interrupt in kernel code stays on its stack, aligned, and a trap gate leaves IF alone")]
    public void KernelInterrupt()
    {
        cpu.SetGate(0x20, trap: true);
        cpu.State.InterruptFlag = true;
        cpu.Registers.Regs.Rsp = EmulatedCpu.KernelStack - 3;
        Assert.True(cpu.Events.DeliverInterrupt(0x20));
        Assert.Equal(EmulatedCpu.KernelStack - 16 - 40, cpu.Registers.Regs.Rsp);
        Assert.Equal(EmulatedCpu.KernelStack - 3, cpu.Word(cpu.Registers.Regs.Rsp + 24));
        Assert.True(cpu.State.InterruptFlag);
        Assert.Equal(0x18, cpu.State.StackSelector);
    }

    [Fact(DisplayName = "An NMI arrives at vector 2 whatever IF is, and holds others back")]
    public void Nmi()
    {
        cpu.SetGate(2, stack: 1);
        Assert.False(cpu.State.InterruptFlag);
        Assert.True(cpu.Events.DeliverNmi());
        Assert.Equal(EmulatedCpu.Handlers + (2 * 16), cpu.Registers.Regs.Rip);
        Assert.Equal(EmulatedCpu.Ist1 - 40, cpu.Registers.Regs.Rsp);
        Assert.True(cpu.State.NmiBlocked);
    }

    [Fact(DisplayName = "A gate with an IST uses that stack, whatever the privilege")]
    public void InterruptStackTable()
    {
        cpu.SetGate(1, stack: 1);
        Assert.True(cpu.Events.DeliverFault(new GuestFault(ExceptionVector.Debug)));
        Assert.Equal(EmulatedCpu.Ist1 - 40, cpu.Registers.Regs.Rsp);
    }

    [Fact(DisplayName = "INT n from user code needs a gate for it; without, #GP names the vector")]
    public void SoftwareInterrupt()
    {
        cpu.SetGate(0x80, privilege: 3);
        cpu.SetGate(0x81);
        cpu.SetGate(13);
        EnterUser();
        Assert.True(cpu.Events.DeliverSoftware(0x80, EmulatedCpu.UserBase + 2));
        Assert.Equal(EmulatedCpu.UserBase + 2, cpu.Word(cpu.Registers.Regs.Rsp));
        EnterUser();
        Assert.True(cpu.Events.DeliverSoftware(0x81, EmulatedCpu.UserBase + 2));
        Assert.Equal((0x81UL << 3) | 2, cpu.Word(cpu.Registers.Regs.Rsp));
        Assert.Equal(EmulatedCpu.UserBase, cpu.Word(cpu.Registers.Regs.Rsp + 8));
    }

    [Fact(DisplayName = "A stack that is not mapped turns a page fault into a double fault, on its own stack")]
    public void DoubleFault()
    {
        cpu.SetGate(14);
        cpu.SetGate(8, stack: 1);
        cpu.Registers.Regs.Rsp = 0x1000;
        Assert.True(cpu.Events.DeliverFault(new GuestFault(ExceptionVector.PageFault, 2, 0xFF8)));
        Assert.Equal(EmulatedCpu.Handlers + (8 * 16), cpu.Registers.Regs.Rip);
        Assert.Equal(0UL, cpu.Word(cpu.Registers.Regs.Rsp));
    }

    [Fact(DisplayName = "Without any handler it is a triple fault")]
    public void TripleFault()
    {
        cpu.State.IdtLimit = 0;
        Assert.False(cpu.Events.DeliverFault(GuestFault.InvalidOpcode));
    }

    private void EnterUser()
    {
        cpu.State.Cpl = 3;
        cpu.State.InterruptFlag = true;
        cpu.State.CodeSelector = 0x33;
        cpu.State.StackSelector = 0x2B;
        cpu.Registers.Regs.Rip = EmulatedCpu.UserBase;
        cpu.Registers.Regs.Rsp = EmulatedCpu.UserStack;
    }
}
