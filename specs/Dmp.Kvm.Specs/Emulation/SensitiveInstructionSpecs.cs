using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Emulation;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Emulation;

public sealed class SensitiveInstructionSpecs : IDisposable
{
    private const ulong Interrupt = (ulong)Rflags.Interrupt;

    private readonly EmulatedCpu cpu = new();

    public void Dispose() => cpu.Dispose();

    [Fact(DisplayName = "CLI and STI change the virtual IF, and PUSHF shows it")]
    public void Flags()
    {
        Assert.Equal(Outcome.Done, cpu.Execute(0xFB));
        Assert.Equal(Outcome.Done, cpu.Execute(0x9C));
        Assert.Equal(Interrupt, cpu.Word(cpu.Registers.Regs.Rsp) & Interrupt);
        Assert.Equal(Outcome.Done, cpu.Execute(0xFA));
        Assert.Equal(Outcome.Done, cpu.Execute(0x9C));
        Assert.Equal(0UL, cpu.Word(cpu.Registers.Regs.Rsp) & Interrupt);
    }

    [Property(DisplayName = "What POPF loads, PUSHF shows, for every flag the kernel may change")]
    public void PopThenPush(ulong flags)
    {
        const ulong Changeable = (ulong)(Rflags.UserChangeable | Rflags.Interrupt | Rflags.IoPrivilege);
        ulong rsp = cpu.Registers.Regs.Rsp;
        cpu.Push(flags);
        Assert.Equal(Outcome.Done, cpu.Execute(0x9D));
        Assert.Equal(rsp, cpu.Registers.Regs.Rsp);
        Assert.Equal(Outcome.Done, cpu.Execute(0x9C));
        Assert.Equal((flags & Changeable) | (ulong)Rflags.AlwaysOne, cpu.Word(cpu.Registers.Regs.Rsp));
        cpu.Registers.Regs.Rsp = rsp;
    }

    [Fact(DisplayName = "PUSHF on a stack that is not mapped is the guest's page fault, and changes nothing")]
    public void PushFault()
    {
        cpu.Registers.Regs.Rsp = 0x1000;
        Assert.Equal(Outcome.Fault, cpu.Execute(0x9C));
        Assert.Equal(new GuestFault(ExceptionVector.PageFault, 2, 0xFF8), cpu.Context.Fault);
        Assert.Equal(0x1000UL, cpu.Registers.Regs.Rsp);
    }

    [Fact(DisplayName = "IRET goes to user code with its flags, stack and selectors")]
    public void InterruptReturnToUser()
    {
        cpu.Push(0x2B, EmulatedCpu.UserStack, Interrupt | 0x41, 0x33, EmulatedCpu.UserBase);
        Assert.Equal(Outcome.Jumped, cpu.Execute(0x48, 0xCF));
        Assert.Equal(3, cpu.State.Cpl);
        Assert.Equal(EmulatedCpu.UserBase, cpu.Registers.Regs.Rip);
        Assert.Equal(EmulatedCpu.UserStack, cpu.Registers.Regs.Rsp);
        Assert.True(cpu.State.InterruptFlag);
        Assert.Equal(0x41UL, cpu.Registers.Regs.Rflags & 0x41);
    }

    [Fact(DisplayName = "IRET with NT set is a fault, for in long mode there is no task to return to")]
    public void NestedTask()
    {
        cpu.Push(0x18, EmulatedCpu.KernelStack, 2, 0x10, EmulatedCpu.KernelCode);
        ulong rsp = cpu.Registers.Regs.Rsp;
        cpu.Registers.Regs.Rflags |= (ulong)Rflags.NestedTask;
        Assert.Equal(Outcome.Fault, cpu.Execute(0x48, 0xCF));
        Assert.Equal(GuestFault.GeneralProtection, cpu.Context.Fault);
        Assert.Equal(rsp, cpu.Registers.Regs.Rsp);
    }

    [Fact(DisplayName = "IRET ends the time in which NMIs are held back, also one that faults; no other return does")]
    public void NmiEnd()
    {
        cpu.State.NmiBlocked = true;
        cpu.Push(0x10, EmulatedCpu.KernelCode);
        Assert.Equal(Outcome.Jumped, cpu.Execute(0x48, 0xCB));
        Assert.True(cpu.State.NmiBlocked);
        cpu.Push(0x18, EmulatedCpu.KernelStack, 2, 0x10, EmulatedCpu.KernelCode);
        Assert.Equal(Outcome.Jumped, cpu.Execute(0x48, 0xCF));
        Assert.False(cpu.State.NmiBlocked);
        cpu.State.NmiBlocked = true;
        cpu.Push(0x18, EmulatedCpu.KernelStack, 2, 0, EmulatedCpu.KernelCode);
        Assert.Equal(Outcome.Fault, cpu.Execute(0x48, 0xCF));
        Assert.False(cpu.State.NmiBlocked);
    }

    [Theory(DisplayName = "One hypercall sends an IPI to every vCPU of a bit map, and says how many took it")]
    [InlineData(0b0101, 0, 0, new[] { 0, 2 })]
    [InlineData(0b0001, 0, 3, new[] { 3 })]
    [InlineData(0b1110, 1, 1, new[] { 2, 3 })]
    [InlineData(0, 0, 0, new int[0])]
    public void Ipi_to_many(ulong low, ulong high, uint first, int[] reached)
    {
        foreach (LocalApic apic in cpu.Context.Chipset.LocalApics)
        {
            _ = apic.Accept(new InterruptMessage((uint)apic.Index, false, DeliveryMode.StartUp, 0, false)) && apic.TryTakeStartUp(out _);
            Assert.True(apic.TryWriteMsr(LocalApic.FirstMsr + 0xF, 0x1FF));
        }

        (cpu.Registers.Regs.Rax, cpu.Registers.Regs.Rbx, cpu.Registers.Regs.Rcx) = (10, low, high);
        (cpu.Registers.Regs.Rdx, cpu.Registers.Regs.Rsi) = (first, 0xF2);
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x01, 0xD9));
        Assert.Equal((ulong)reached.Length, cpu.Registers.Regs.Rax);
        Assert.Equal(reached, cpu.Context.Chipset.LocalApics.Where(apic => apic.HasInterrupt).Select(apic => apic.Index));
    }

    [Fact(DisplayName = "Hypercalls that are not offered, or not with this argument, are errors; one for a vCPU that is none does nothing")]
    public void Hypercalls()
    {
        cpu.Registers.Regs.Rax = 1;
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x01, 0xC1));
        Assert.Equal(-1000, (long)cpu.Registers.Regs.Rax);
        (cpu.Registers.Regs.Rax, cpu.Registers.Regs.Rbx, cpu.Registers.Regs.Rsi) = (10, 1, 0x500);
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x01, 0xC1));
        Assert.Equal(-22, (long)cpu.Registers.Regs.Rax);
        (cpu.Registers.Regs.Rax, cpu.Registers.Regs.Rcx) = (5, ulong.MaxValue);
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x01, 0xC1));
        (cpu.Registers.Regs.Rax, cpu.Registers.Regs.Rcx) = (5, 2);
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x01, 0xC1));
        Assert.Equal(0ul, cpu.Registers.Regs.Rax);
        Assert.True(cpu.Context.Chipset.LocalApics[2].TakeWakeUp());
    }

    [Theory(DisplayName = "IRET with a bad frame is #GP with the selector, at the IRET")]
    [InlineData(0x00, 0x2B, 0)]
    [InlineData(0x13, 0x2B, 0x10)]
    [InlineData(0x2B, 0x2B, 0x28)]
    [InlineData(0x33, 0x18, 0x18)]
    [InlineData(0x33, 0x00, 0)]
    [InlineData(0x83, 0x2B, 0x80)]
    public void BadInterruptReturn(ulong code, ulong stack, uint error)
    {
        cpu.Push(stack, EmulatedCpu.UserStack, 2, code, EmulatedCpu.UserBase);
        Assert.Equal(Outcome.Fault, cpu.Execute(0x48, 0xCF));
        Assert.Equal(new GuestFault(ExceptionVector.GeneralProtection, error), cpu.Context.Fault);
        Assert.Equal(0, cpu.State.Cpl);
    }

    [Fact(DisplayName = "SYSCALL and SYSRET go to the kernel and back as STAR, LSTAR and SFMASK say")]
    public void SystemCall()
    {
        cpu.State.Efer |= Efer.SystemCall;
        cpu.State.Star = (0x23UL << 48) | (0x10UL << 32);
        cpu.State.LongStar = EmulatedCpu.KernelCode;
        cpu.State.SyscallMask = Interrupt | (ulong)Rflags.Direction;
        cpu.State.Cpl = 3;
        cpu.State.InterruptFlag = true;
        cpu.Registers.Regs.Rcx = EmulatedCpu.UserBase + 2;
        cpu.Registers.Regs.R11 = Interrupt | (ulong)Rflags.Direction | 3;
        Assert.Equal(Outcome.Jumped, cpu.EnterSystemCall());
        Assert.Equal((0, false), (cpu.State.Cpl, cpu.State.InterruptFlag));
        Assert.Equal(EmulatedCpu.KernelCode, cpu.Registers.Regs.Rip);
        Assert.Equal(0UL, cpu.Registers.Regs.Rflags & (ulong)Rflags.Direction);
        Assert.Equal((0x10, 0x18), (cpu.State.CodeSelector, cpu.State.StackSelector));
        Assert.Equal(Outcome.Jumped, cpu.Execute(0x48, 0x0F, 0x07));
        Assert.Equal((3, true), (cpu.State.Cpl, cpu.State.InterruptFlag));
        Assert.Equal((0x33, 0x2B), (cpu.State.CodeSelector, cpu.State.StackSelector));
        Assert.Equal(EmulatedCpu.UserBase + 2, cpu.Registers.Regs.Rip);
    }

    [Fact(DisplayName = "SYSCALL without EFER.SCE is #UD; SYSRET to a non-canonical address is #GP")]
    public void BadSystemCall()
    {
        Assert.Equal(Outcome.Fault, cpu.EnterSystemCall());
        Assert.Equal(GuestFault.InvalidOpcode, cpu.Context.Fault);
        cpu.Registers.Regs.Rcx = 1UL << 47;
        Assert.Equal(Outcome.Fault, cpu.Execute(0x48, 0x0F, 0x07));
        Assert.Equal(GuestFault.GeneralProtection, cpu.Context.Fault);
    }

    [Fact(DisplayName = "SWAPGS exchanges the real GS base with the virtual one")]
    public void SwapGs()
    {
        cpu.Registers.Sregs.Gs.Base = 1;
        cpu.State.KernelGsBase = 2;
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x01, 0xF8));
        Assert.Equal((2UL, 1UL), (cpu.Registers.Sregs.Gs.Base, cpu.State.KernelGsBase));
    }

    [Fact(DisplayName = "CR0, CR2, CR3 and CR4 read back what was written, and refuse what the processor refuses")]
    public void ControlRegisters()
    {
        cpu.Registers.Regs.Rax = 0x1234;
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x22, 0xD0));
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x20, 0xD1));
        Assert.Equal(0x1234UL, cpu.Registers.Regs.Rcx);
        cpu.Registers.Regs.Rax = (ulong)(Cr4.PhysicalAddressExtension | Cr4.PageGlobal | Cr4.Pcid);
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x22, 0xE0));
        Assert.Equal((Cr4)cpu.Registers.Regs.Rax, cpu.State.Cr4);
        cpu.Registers.Regs.Rax = (ulong)Cr4.PageGlobal;
        Assert.Equal(Outcome.Fault, cpu.Execute(0x0F, 0x22, 0xE0));
        cpu.Registers.Regs.Rax = cpu.State.Cr3 | (1UL << 63) | 5;
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x22, 0xD8));
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x20, 0xD9));
        Assert.Equal(cpu.State.Cr3, cpu.Registers.Regs.Rcx);
        Assert.Equal(5UL, cpu.State.Cr3 & 0xFFF);
        cpu.Registers.Regs.Rax = 0x11;
        Assert.Equal(Outcome.Unsupported, cpu.Execute(0x0F, 0x22, 0xC0));
    }

    [Fact(DisplayName = "An MSR that nobody owns is #GP and is counted; EFER refuses reserved bits")]
    public void Msrs()
    {
        cpu.Registers.Regs.Rcx = 0x1234_5678;
        Assert.Equal(Outcome.Fault, cpu.Execute(0x0F, 0x32));
        Assert.Equal(Outcome.Fault, cpu.Execute(0x0F, 0x30));
        Assert.Equal(2, cpu.Context.UnownedMsrs.Snapshot()[0x1234_5678]);
        cpu.Registers.Regs.Rcx = 0xC000_0080;
        (cpu.Registers.Regs.Rax, cpu.Registers.Regs.Rdx) = (0xD01, 0);
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x30));
        (cpu.Registers.Regs.Rax, cpu.Registers.Regs.Rdx) = (0xD01, 1);
        Assert.Equal(Outcome.Fault, cpu.Execute(0x0F, 0x30));
    }

    [Fact(DisplayName = "MOV from CS and SS shows the guest's selectors")]
    public void Selectors()
    {
        Assert.Equal(Outcome.Done, cpu.Execute(0x8C, 0xC8));
        Assert.Equal(0x10UL, cpu.Registers.Regs.Rax);
        Assert.Equal(Outcome.Done, cpu.Execute(0x8C, 0xD1));
        Assert.Equal(0x18UL, cpu.Registers.Regs.Rcx);
    }

    [Fact(DisplayName = "Ports that nobody owns read all ones; user code needs IOPL or the bitmap of the TSS")]
    public void Ports()
    {
        cpu.Registers.Regs.Rdx = 0x1234;
        Assert.Equal(Outcome.Done, cpu.Execute(0xEC));
        Assert.Equal(0xFFUL, cpu.Registers.Regs.Rax & 0xFF);
        cpu.State.Cpl = 3;
        Assert.Equal(Outcome.NotSensitive, cpu.Execute(0xEC));
        cpu.State.IoPrivilege = (ulong)Rflags.IoPrivilege;
        Assert.Equal(Outcome.Done, cpu.Execute(0xEC));
    }

    [Fact(DisplayName = "HLT waits, and user code cannot")]
    public void Halt()
    {
        Assert.Equal(Outcome.Halt, cpu.Execute(0xF4));
        cpu.State.Cpl = 3;
        Assert.Equal(Outcome.NotSensitive, cpu.Execute(0xF4));
    }

    [Fact(DisplayName = "XSETBV takes what the CPU model offers and nothing else")]
    public void ExtendedControl()
    {
        cpu.State.Cr4 |= Cr4.XSave;
        (cpu.Registers.Regs.Rax, cpu.Registers.Regs.Rdx, cpu.Registers.Regs.Rcx) = (7, 0, 0);
        Assert.Equal(Outcome.Done, cpu.Execute(0x0F, 0x01, 0xD1));
        Assert.Equal(7UL, cpu.State.Xcr0);
        cpu.Registers.Regs.Rax = 0xFF;
        Assert.Equal(Outcome.Fault, cpu.Execute(0x0F, 0x01, 0xD1));
    }
}
