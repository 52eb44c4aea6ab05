using Dmp.Kvm.Cpu;
using Dmp.Kvm.Emulation;
using Dmp.Kvm.Specs.Machine;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Emulation;

/// <summary>Instructions on device registers, here the local APIC's; and on RAM, which they may name as well.</summary>
public sealed class MmioInstructionSpecs : IDisposable
{
    private const int TaskPriority = 0x80;
    private const int Spurious = 0xF0;
    private const uint SpuriousEnable = 1 << 8;
    private const ulong Carry = (ulong)Rflags.Carry;
    private const ulong Zero = (ulong)Rflags.Zero;

    private readonly EmulatedCpu cpu = new();

    public MmioInstructionSpecs()
    {
        cpu.Context.Chipset.BeginInXApicMode();
        cpu.Registers.Regs.Rbx = EmulatedCpu.LocalApic;
        cpu.Registers.Regs.Rsi = EmulatedCpu.KernelData;
        cpu.Registers.Regs.Rflags = (ulong)Rflags.AlwaysOne;
    }

    public void Dispose() => cpu.Dispose();

    [Fact(DisplayName = "A bit of a register is set, tested and cleared as compilers do it")]
    public void SetTestClear()
    {
        Do(a => a.mov(__dword_ptr[rbx + Spurious], 0x2F));
        Do(a => a.or(__dword_ptr[rbx + Spurious], (int)SpuriousEnable));
        Assert.Equal(0x2F | SpuriousEnable, Read(Spurious));
        Do(a => a.test(__dword_ptr[rbx + Spurious], (int)SpuriousEnable));
        Assert.Equal(0UL, cpu.Registers.Regs.Rflags & Zero);
        Do(a => a.and(__dword_ptr[rbx + Spurious], ~(int)SpuriousEnable));
        Assert.Equal(0x2Fu, Read(Spurious));
        Do(a => a.test(__dword_ptr[rbx + Spurious], (int)SpuriousEnable));
        Assert.Equal(Zero, cpu.Registers.Regs.Rflags & Zero);
    }

    [Fact(DisplayName = "A bit may be named by its number, also one in a register before or behind")]
    public void BitNumbers()
    {
        Do(a => a.mov(__dword_ptr[rbx + Spurious], 0x2F));
        Do(a => a.bts(__dword_ptr[rbx + Spurious], 8));
        Assert.Equal(0UL, cpu.Registers.Regs.Rflags & Carry);
        Assert.Equal(0x2F | SpuriousEnable, Read(Spurious));

        // From the task priority to the spurious vector, and back below it.
        const int Between = (Spurious - TaskPriority) * 8;
        cpu.Registers.Regs.Rcx = Between + 8;
        Do(a => a.btr(__dword_ptr[rbx + TaskPriority], ecx));
        Assert.Equal(Carry, cpu.Registers.Regs.Rflags & Carry);
        Assert.Equal(0x2Fu, Read(Spurious));
        cpu.Registers.Regs.Rcx = unchecked((uint)(-Between + 4));
        Do(a => a.btc(__dword_ptr[rbx + Spurious], ecx));
        Assert.Equal(0x10u, Read(TaskPriority));
    }

    [Fact(DisplayName = "An exchange gives the old value")]
    public void Exchange()
    {
        Do(a => a.mov(__dword_ptr[rbx + TaskPriority], 0x30));
        cpu.Registers.Regs.Rcx = 0xFFFF_FFFF_0000_0050;
        Do(a => a.xchg(__dword_ptr[rbx + TaskPriority], ecx));
        Assert.Equal(0x30UL, cpu.Registers.Regs.Rcx);
        Assert.Equal(0x50u, Read(TaskPriority));
    }

    [Fact(DisplayName = "A register of the device may be the second operand; what only compares changes flags alone")]
    public void Source()
    {
        Do(a => a.mov(__dword_ptr[rbx + TaskPriority], 0x30));
        cpu.Registers.Regs.Rcx = 0xFFFF_FFFF_0000_0030;
        Do(a => a.cmp(ecx, __dword_ptr[rbx + TaskPriority]));
        Assert.Equal(0xFFFF_FFFF_0000_0030, cpu.Registers.Regs.Rcx);
        Assert.Equal(Zero, cpu.Registers.Regs.Rflags & Zero);
        Do(a => a.add(ecx, __dword_ptr[rbx + TaskPriority]));
        Assert.Equal(0x60UL, cpu.Registers.Regs.Rcx);
        Do(a => a.inc(__dword_ptr[rbx + TaskPriority]));
        Assert.Equal(0x31u, Read(TaskPriority));
    }

    [Fact(DisplayName = "Immediates are sign-extended, and only as many bytes are written as the operand has")]
    public void Ram()
    {
        cpu.Write(EmulatedCpu.KernelData, 0x1111_2222_3333_4444);
        Do(a => a.and(__qword_ptr[rsi], -16));
        Assert.Equal(0x1111_2222_3333_4440UL, cpu.Word(EmulatedCpu.KernelData));
        Do(a => a.not(__word_ptr[rsi + 2]));
        Assert.Equal(0x1111_2222_CCCC_4440UL, cpu.Word(EmulatedCpu.KernelData));
        Do(a => a.xor(__byte_ptr[rsi + 7], 1));
        Assert.Equal(0x1011_2222_CCCC_4440UL, cpu.Word(EmulatedCpu.KernelData));
    }

    [Fact(DisplayName = "A page that cannot be written to is a fault that changes nothing, unless the instruction only tests")]
    public void ReadOnly()
    {
        Do(a => a.mov(__dword_ptr[rbx + TaskPriority], 0x30));
        cpu.Registers.Sregs.Cr0 |= (ulong)Cr0.WriteProtect;
        cpu.State.Cr0 |= (ulong)Cr0.WriteProtect;
        cpu.Registers.Regs.Rbx = EmulatedCpu.ReadOnlyLocalApic;
        cpu.Registers.Regs.Rcx = 7;
        ulong flags = cpu.Registers.Regs.Rflags;
        foreach (Action<Assembler> write in (Action<Assembler>[])
            [
                a => a.or(__dword_ptr[rbx + TaskPriority], 1),
                a => a.neg(__dword_ptr[rbx + TaskPriority]),
                a => a.xchg(__dword_ptr[rbx + TaskPriority], ecx),
                a => a.bts(__dword_ptr[rbx + TaskPriority], 7),
            ])
        {
            Assert.Equal(Outcome.Fault, Execute(write));
            Assert.Equal(new GuestFault(ExceptionVector.PageFault, 3, EmulatedCpu.ReadOnlyLocalApic + TaskPriority), cpu.Context.Fault);
        }

        Assert.Equal((7UL, flags), (cpu.Registers.Regs.Rcx, cpu.Registers.Regs.Rflags));
        Assert.Equal(0x30u, Read(TaskPriority));
        Do(a => a.bt(__dword_ptr[rbx + TaskPriority], 4));
        Assert.Equal(Carry, cpu.Registers.Regs.Rflags & Carry);
    }

    [Fact(DisplayName = "Anything else is not executed")]
    public void Unsupported() => Assert.Equal(Outcome.Unsupported, Execute(a => a.paddb(xmm0, __[rbx + TaskPriority])));

    private void Do(Action<Assembler> write) => Assert.Equal(Outcome.Done, Execute(write));

    private Outcome Execute(Action<Assembler> write) => cpu.ExecuteMmio(TinyMultiboot.Assemble(64, EmulatedCpu.KernelCode, write));

    private uint Read(int register)
    {
        ulong kept = cpu.Registers.Regs.Rax;
        Do(a => a.mov(eax, __dword_ptr[rbx + register]));
        uint value = (uint)cpu.Registers.Regs.Rax;
        cpu.Registers.Regs.Rax = kept;
        return value;
    }
}
