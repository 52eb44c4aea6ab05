using System.Runtime.InteropServices;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Machine;

/// <summary>What a kernel sees of the machine.</summary>
[Collection(KvmMachineCollection.Name)]
public class GuestViewSpecs
{
    private const ulong InterruptFlag = 1 << 9;
    private const ulong AlwaysOne = 1 << 1;

    [SkippableFact(DisplayName = "A kernel writes to the console and switches the machine off")]
    public void HelloAndOff()
    {
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            a.Print("hello\n");
            a.PowerOff();
        });

        Assert.IsType<VcpuStop.PoweredOff>(machine.Vcpus[0].Run());

        Assert.Equal("hello\n", machine.Text());
        Assert.Equal(7, machine.Vcpus[0].Exits.Total(ExitKind.Io));
    }

    [SkippableFact(DisplayName = "The kernel is entered as the 64-bit boot protocol says")]
    public void Entry()
    {
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            a.mov(r8, cr0);
            a.mov(r9, cr4);
            a.mov(ecx, 0xC0000080); // EFER
            a.rdmsr();
            a.mov(r10d, eax);
            a.mov(r11d, __dword_ptr[rsi + 0x202]); // "HdrS" of the boot parameters
            a.PowerOff();
        });

        Assert.IsType<VcpuStop.PoweredOff>(machine.Vcpus[0].Run());

        var regs = machine.Registers();
        const ulong ProtectionAndPaging = (1UL << 31) | 1;
        const ulong PhysicalAddressExtension = 1 << 5;
        const ulong LongMode = (1 << 8) | (1 << 10);
        Assert.Equal(ProtectionAndPaging, regs.R8 & ProtectionAndPaging);
        Assert.Equal(PhysicalAddressExtension, regs.R9 & PhysicalAddressExtension);
        Assert.Equal(LongMode, regs.R10 & LongMode);
        Assert.Equal(0x53726448UL, regs.R11);
    }

    [SkippableFact(DisplayName = "PUSHF shows the interrupt flag as STI, CLI and POPF have set it, and no other trace of us")]
    public void Flags()
    {
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            a.xor(eax, eax);
            a.pushfq();
            a.pop(r8);
            a.sti();
            a.pushfq();
            a.pop(r9);
            a.cli();
            a.pushfq();
            a.pop(r10);
            a.push(r9);
            a.popfq();
            a.pushfq();
            a.pop(r11);
            a.push(r10);
            a.popfq();
            a.pushfq();
            a.pop(r12);
            a.PowerOff();
        });

        Assert.IsType<VcpuStop.PoweredOff>(machine.Vcpus[0].Run());

        var regs = machine.Registers();
        const ulong ZeroAndParity = (1 << 6) | (1 << 2); // from XOR
        Assert.Equal(AlwaysOne | ZeroAndParity, regs.R8);
        Assert.Equal(AlwaysOne | ZeroAndParity | InterruptFlag, regs.R9);
        Assert.Equal(regs.R8, regs.R10);
        Assert.Equal(regs.R9, regs.R11);
        Assert.Equal(regs.R8, regs.R12);
        Assert.Equal(7, machine.Vcpus[0].Exits.Total(ExitKind.Silent));
    }

    [SkippableFact(DisplayName = "POPF sets and clears arithmetic flags and leaves the stack pointer where it belongs")]
    public void ArithmeticFlags()
    {
        const ulong Arithmetic = 0xCD5; // OF DF SF ZF AF PF CF
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            a.mov(rbx, rsp);
            a.push(0xCD7);
            a.popfq();
            a.pushfq();
            a.pop(r8);
            a.push(2);
            a.popfq();
            a.pushfq();
            a.pop(r9);
            a.mov(r10, rsp);
            a.PowerOff();
        });

        Assert.IsType<VcpuStop.PoweredOff>(machine.Vcpus[0].Run());

        var regs = machine.Registers();
        Assert.Equal(Arithmetic | AlwaysOne, regs.R8);
        Assert.Equal(AlwaysOne, regs.R9);
        Assert.Equal(regs.Rbx, regs.R10);
    }

    [SkippableFact(DisplayName = "The selectors are those of the boot protocol, not ours")]
    public void Selectors()
    {
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            a.mov(r8d, cs);
            a.mov(r9d, ss);
            a.PowerOff();
        });

        Assert.IsType<VcpuStop.PoweredOff>(machine.Vcpus[0].Run());

        Assert.Equal(0x10UL, machine.Registers().R8);
        Assert.Equal(0x18UL, machine.Registers().R9);
    }

    [SkippableFact(DisplayName = "CPUID says that this is KVM")]
    public void HypervisorSignature()
    {
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            a.mov(eax, 0x40000000);
            a.cpuid();
            a.mov(r8d, ebx);
            a.mov(r9d, ecx);
            a.mov(r10d, edx);
            a.mov(eax, 1);
            a.cpuid();
            a.mov(r11d, ecx);
            a.PowerOff();
        });

        Assert.IsType<VcpuStop.PoweredOff>(machine.Vcpus[0].Run());

        var regs = machine.Registers();
        uint[] words = [(uint)regs.R8, (uint)regs.R9, (uint)regs.R10];
        Assert.Equal("KVMKVMKVM\0\0\0"u8, MemoryMarshal.AsBytes<uint>(words));
        Assert.Equal(1u, (uint)regs.R11 >> 31); // a hypervisor is present
    }

    [SkippableFact(DisplayName = "Ports that no device owns read as all ones, and are counted")]
    public void UnownedPorts()
    {
        const ushort Nobody = 0x1234;
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            a.mov(dx, Nobody);
            a.@in(eax, dx);
            a.mov(r8, rax);
            a.mov(rax, 0x1111222233334444);
            a.@in(ax, dx);
            a.mov(r9, rax);
            a.mov(rax, 0x1111222233334444);
            a.@in(al, dx);
            a.mov(r10, rax);
            a.@out(dx, al);
            a.PowerOff();
        });

        Assert.IsType<VcpuStop.PoweredOff>(machine.Vcpus[0].Run());

        var regs = machine.Registers();
        Assert.Equal(0xFFFFFFFFUL, regs.R8);
        Assert.Equal(0x111122223333FFFFUL, regs.R9);
        Assert.Equal(0x11112222333344FFUL, regs.R10);
        Assert.Equal(new KeyValuePair<ushort, long>(Nobody, 4), Assert.Single(machine.UnownedPorts));
    }

    [SkippableFact(DisplayName = "Code that writes into the page it runs from executes what it has written")]
    public void SelfModifyingCode()
    {
        const short PushfqPopRax = 0x589C;
        const short TwoNops = unchecked((short)0x9090);
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            Label patched = a.CreateLabel("patched");
            Label again = a.CreateLabel("again");
            Label immediate = a.CreateLabel("immediate");

            // An immediate, twenty times over: 1 + 2 + ... + 20.
            a.xor(r8d, r8d);
            a.mov(ecx, 1);
            a.Label(ref again);
            a.lea(rbx, __[immediate]);
            a.mov(__byte_ptr[rbx + 1], cl);
            a.Label(ref immediate);
            a.mov(al, 0x7F);
            a.movzx(eax, al);
            a.add(r8d, eax);
            a.inc(ecx);
            a.cmp(ecx, 20);
            a.jbe(again);

            // A silent instruction appears where none was, and goes away again.
            a.sti();
            a.xor(r12d, r12d);
            Label loop = a.CreateLabel("loop");
            Label done = a.CreateLabel("done");
            a.lea(rbx, __[patched]);
            a.mov(__word_ptr[rbx], PushfqPopRax);
            a.Label(ref loop);
            a.xor(eax, eax);
            a.Label(ref patched);
            a.nop();
            a.nop();
            a.inc(r12d);
            a.cmp(r12d, 2);
            a.je(done);
            a.mov(r9, rax);
            a.mov(__word_ptr[rbx], TwoNops);
            a.jmp(loop);
            a.Label(ref done);
            a.mov(r10, rax);
            a.movzx(r11d, __word_ptr[rbx]);
            a.cli();
            a.PowerOff();
        });

        Assert.IsType<VcpuStop.PoweredOff>(machine.Vcpus[0].Run());

        var regs = machine.Registers();
        Assert.Equal(210UL, regs.R8);
        Assert.Equal(InterruptFlag, regs.R9 & InterruptFlag);
        Assert.Equal(0UL, regs.R10);
        Assert.Equal(0x9090UL, regs.R11);
        Assert.InRange(machine.Vcpus[0].Exits.Total(ExitKind.CodeWrite), 22, long.MaxValue);
    }
}
