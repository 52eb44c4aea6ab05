using System.Text;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Machine;

/// <summary>Code before 64-bit mode: trampolines in real mode, multiboot kernels, and the way to 64-bit mode and back.</summary>
[Collection(KvmMachineCollection.Name)]
public class StartUpSpecs
{
    private const byte StartUpVector = 0x08;
    private const ulong RealModeCode = StartUpVector << 12;
    private const ulong ProtectedModeCode = RealModeCode + 0x100;
    private const ulong OtherCode = RealModeCode + 0x200;
    private const int PointerOffset = 0xF00;
    private const ulong PageTables = 0x1_0000;
    private const ulong DescriptorTable = 0x1_3000;
    private const ulong Stack = 0x2_0000;
    private const ushort Code64 = 0x08;
    private const ushort Data = 0x10;
    private const ushort Code32 = 0x18;
    private const uint EferIndex = 0xC000_0080;
    private const uint EferLongAndNoExecute = (1 << 8) | (1 << 11);
    private const uint Cr4PhysicalAddressExtension = 1 << 5;
    private const uint Cr0PagingAndProtection = 0x8000_0001;

    [SkippableTheory(DisplayName = "A trampoline goes from real mode to 64-bit mode, where it is deprivileged with all of its state")]
    [InlineData(true)]
    [InlineData(false)]
    public void Trampoline(bool watched)
    {
        Action<Assembler> kernel = a =>
        {
            a.pushfq();
            a.pop(r8);
            a.mov(r9, cr3);
            a.sgdt(__[TinyKernel.Data]);
            a.mov(r10d, cs);
            a.mov(ecx, EferIndex);
            a.rdmsr();
            a.mov(r11d, eax);
            a.Print("64\n");
            a.PowerOff();
        };
        using VirtualMachine machine = watched ? Carrier(kernel) : TinyKernel.Load(kernel);
        WriteTables(machine);
        WriteTrampoline(machine);
        Vcpu vcpu = machine.InternalVcpus[0];
        Assert.Equal(watched, machine.Shared.WatchesMsrs);
        vcpu.StartUp.Begin(StartUpVector);

        Assert.Equal(new VcpuStop.PoweredOff(), vcpu.Run());
        Assert.Equal("RP64\n", machine.Text());
        Assert.False(vcpu.StartUp.IsActive);
        Assert.Equal(0, vcpu.State.Cpl);
        Assert.Equal(PageTables, machine.Registers().R9);
        Assert.Equal(0UL, machine.Registers().R8 & (ulong)Rflags.Interrupt);
        Assert.Equal(Code64, machine.Registers().R10);
        Assert.Equal(EferLongAndNoExecute | (1u << 10), machine.Registers().R11);
        Assert.Equal(DescriptorTable, machine.Word(TinyKernel.Data + sizeof(ushort)) & 0xFFFF_FFFF);
        Assert.Equal(0x1234_5678UL, machine.Registers().Rbx);
        Assert.Equal(0x8765_4321UL, machine.Registers().Rsi);
        Assert.Equal(Stack, machine.Registers().Rsp);

        // One that begins in 64-bit mode leaves CPUID to the host where user code sees the host's.
        Assert.True(machine.Shared.KvmAnswersCpuid || !watched);
        if (machine.Shared.KvmAnswersCpuid)
        {
            CpuidResult model = machine.Shared.Cpuid.Query(1, 0, 0, vcpu.State);
            Assert.Equal(model.Eax, (uint)machine.Registers().Rbp);
            Assert.Equal(model.Edx, (uint)machine.Registers().Rdi);
        }
        if (!watched)
        {
            // Stepped all the way: every instruction of it was an exit.
            Assert.InRange(vcpu.Exits.Total(), 30, 200);
        }
    }

    [SkippableFact(DisplayName = "A vCPU in the middle of something begins anew at the next SIPI")]
    public void BeginsAnew()
    {
        using VirtualMachine machine = Carrier(a => a.PowerOff());
        WriteTables(machine);
        Write(machine, RealModeCode, 16, a =>
        {
            a.mov(al, 7);
            a.@out(TinyKernel.DebugExitPort, al);
            a.@in(al, TinyKernel.DebugExitPort);
            a.hlt();
        });
        Vcpu vcpu = machine.InternalVcpus[0];
        for (int times = 0; times < 2; times++)
        {
            vcpu.StartUp.Begin(StartUpVector);
            Assert.Equal(0UL, vcpu.Registers.Regs.Rip);
            Assert.Equal(new VcpuStop.DebugExit(7), vcpu.Run());
        }
    }

    [SkippableFact(DisplayName = "64-bit code that goes back to 32-bit code runs natively until it is in 64-bit mode again")]
    public void LeavesLongMode()
    {
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            Label again = a.CreateLabel();
            a.mov(rsp, Stack);
            a.mov(rbx, 0x1234_5678_9ABC_DEF0);
            a.mov(rax, DescriptorTable - sizeof(ushort));
            a.lgdt(__[rax]);
            a.lea(r15, __[again]);
            a.mov(__qword_ptr[TinyKernel.Data], r15);
            a.Print("6");
            a.push(Code32);
            a.mov(rax, OtherCode);
            a.push(rax);
            a.db(0x48, 0xCB); // retfq
            a.Label(ref again);
            a.Print("6\n");
            a.PowerOff();
        });
        WriteTables(machine);
        Write(machine, OtherCode, 32, a =>
        {
            a.mov(edx, Data);
            a.mov(ss, edx);
            a.mov(ds, edx);
            a.mov(eax, cr0);
            a.btr(eax, 31);
            a.mov(cr0, eax);
            a.mov(ecx, EferIndex);
            a.rdmsr();
            a.btr(eax, 8);
            a.wrmsr();
            a.Print("3");
            EnableLongMode(a);
            a.push((int)Code64);
            a.push(__dword_ptr[TinyKernel.Data]);
            a.retf();
        });

        Assert.Equal(new VcpuStop.PoweredOff(), machine.Vcpus[0].Run());
        Assert.Equal("636\n", machine.Text());
        Assert.Equal(0x9ABC_DEF0UL, machine.Registers().Rbx & uint.MaxValue);
    }

    [SkippableFact(DisplayName = "A multiboot kernel finds its command line and its module, and may stay in 32-bit mode")]
    public void Multiboot()
    {
        using VirtualMachine machine = TinyMultiboot.Load(
            a =>
            {
                Label next = a.CreateLabel();
                Label end = a.CreateLabel();
                a.mov(ebp, eax);
                a.mov(esi, __dword_ptr[ebx + 24]);
                a.mov(esi, __dword_ptr[esi]);
                a.mov(dx, TinyKernel.SerialPort);
                a.Label(ref next);
                a.lodsb();
                a.test(al, al);
                a.jz(end);
                a.@out(dx, al);
                a.jmp(next);
                a.Label(ref end);

                // The version register of the I/O APIC: memory-mapped, and no RAM.
                a.mov(Double(0xFEC0_0000), 1);
                a.mov(edi, Double(0xFEC0_0010));
                a.DebugExit(5);
                a.hlt();
            },
            "some words",
            "a module\n\0"u8.ToArray());

        Assert.Equal(new VcpuStop.DebugExit(5), machine.Vcpus[0].Run());
        Assert.Equal("a module\n", machine.Text());
        Assert.Equal(0x2BAD_B002UL, machine.Registers().Rbp);
        Assert.Equal(0x0017_0000UL, machine.Registers().Rdi & 0x00FF_0000);
        string commandLine = Encoding.ASCII.GetString(machine.Shared.Memory.Slice(new(0x20000), 64));
        Assert.Contains(" some words\0", commandLine, StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "A kernel that stays in 32-bit mode halts until its timer interrupts it")]
    public void TimerInterrupts()
    {
        const uint Idt = 0x1_8000;
        const int Vector = 0x20;
        using VirtualMachine machine = TinyMultiboot.Load(a =>
        {
            Label wait = a.CreateLabel();
            a.mov(esp, (uint)Stack);
            a.mov(eax, (uint)OtherCode);
            a.mov(Word(Idt + (Vector * 8)), ax);
            a.mov(Word(Idt + (Vector * 8) + 2), cs);
            a.mov(Word(Idt + (Vector * 8) + 4), 0x8E00);
            a.shr(eax, 16);
            a.mov(Word(Idt + (Vector * 8) + 6), ax);
            a.mov(Word(Idt - 6), (Vector * 8) + 7);
            a.mov(Double(Idt - 4), Idt);
            a.lidt(__[Idt - 6]);
            foreach ((byte port, byte value) in new (byte, byte)[] { (0x20, 0x11), (0x21, Vector), (0x21, 4), (0x21, 1), (0x21, 0xFE),
                (0x43, 0x34), (0x40, 0), (0x40, 0x10) })
            {
                a.mov(al, value);
                a.@out(port, al);
            }

            a.xor(ebx, ebx);
            a.sti();
            a.Label(ref wait);
            a.hlt();
            a.cmp(ebx, 3);
            a.jb(wait);
            a.DebugExit(3);
        });
        Write(machine, OtherCode, 32, a =>
        {
            a.inc(ebx);
            a.mov(al, 0x20);
            a.@out(0x20, al);
            a.iretd();
        });

        Assert.Equal(new VcpuStop.DebugExit(3), machine.Vcpus[0].Run());
        Assert.InRange(machine.Registers().Rbx, 3UL, 1000UL);
    }

    [SkippableFact(DisplayName = "A loop before 64-bit mode is paused and goes on")]
    public void Pauses()
    {
        using VirtualMachine machine = TinyMultiboot.Load(a =>
        {
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.inc(Double((uint)TinyKernel.Data));
            a.cmp(Double((uint)TinyKernel.Data + 8), 0);
            a.je(loop);
            a.DebugExit(1);
        });
        IVcpu vcpu = machine.Vcpus[0];
        for (ulong seen = 0, pause = 0; pause < 3; pause++)
        {
            Task<VcpuStop> running = Task.Run(vcpu.Run);
            seen = machine.AwaitMore(TinyKernel.Data, seen);
            vcpu.RequestPause();
            Assert.Equal(new VcpuStop.Paused(), running.GetAwaiter().GetResult());
            Assert.Contains("before 64-bit mode", vcpu.DescribeState(), StringComparison.Ordinal);
        }

        machine.Word(TinyKernel.Data + 8) = 1;
        Assert.Equal(new VcpuStop.DebugExit(1), vcpu.Run());
    }

    [SkippableFact(DisplayName = "A triple fault before 64-bit mode is told with registers and code bytes")]
    public void TripleFault()
    {
        using VirtualMachine machine = TinyMultiboot.Load(a =>
        {
            a.mov(ebx, 0x0123_4567);
            a.Print("!");
            a.ud2();
        });

        var failed = Assert.IsType<VcpuStop.GuestFailed>(machine.Vcpus[0].Run());
        Assert.Contains("triple fault before 64-bit mode", failed.Reason, StringComparison.Ordinal);
        Assert.Contains("rbx 0000000001234567", failed.State, StringComparison.Ordinal);
        Assert.Contains("32 bits", failed.State, StringComparison.Ordinal);
        Assert.Contains("0F0B", failed.State, StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "The APIC's registers and MSRs are the model's before 64-bit mode, and an unknown MSR is a fault")]
    public void ModelSpecificRegisters()
    {
        using VirtualMachine machine = TinyMultiboot.Load(a =>
        {
            const uint ApicBase = 0x1B;
            const uint X2ApicVersion = 0x803;
            const int X2Apic = 1 << 10;
            const uint Unknown = 0x1234;

            // In xAPIC mode first, with the version register in memory.
            a.mov(ebp, Double(0xFEE0_0030));
            a.mov(ecx, ApicBase);
            a.rdmsr();
            a.or(eax, X2Apic);
            a.wrmsr();
            a.rdmsr();
            a.mov(esi, eax);
            a.mov(ecx, X2ApicVersion);
            a.rdmsr();
            a.mov(edi, eax);
            a.mov(ecx, Unknown);
            a.rdmsr();
            a.DebugExit(1);
        });

        _ = Assert.IsType<VcpuStop.GuestFailed>(machine.Vcpus[0].Run());
        Assert.Equal(machine.Shared.Chipset.LocalApics[0].Base, machine.Registers().Rsi);
        Assert.Equal(0x14UL, machine.Registers().Rdi & 0xFF);
        Assert.Equal(machine.Registers().Rdi, machine.Registers().Rbp);
        Assert.Equal(1, machine.Shared.UnownedMsrs.Snapshot()[0x1234]);
    }

    /// <summary>A machine that is made for a start-up phase, with 64-bit code where other tiny kernels have it.</summary>
    private static VirtualMachine Carrier(Action<Assembler> kernel)
    {
        VirtualMachine machine = TinyMultiboot.Load(a => a.hlt());
        TinyKernel.Assemble(kernel).CopyTo(machine.Shared.Memory.Slice(new(TinyKernel.Entry), (int)Paging.PageSize));
        return machine;
    }

    /// <summary>Page tables for the first GiB, in 2 MiB pages, and a GDT with its pseudo-descriptor in front.</summary>
    private static void WriteTables(VirtualMachine machine)
    {
        const ulong Table = 3;
        const ulong Leaf = 0x83;
        const ulong Pointers = PageTables + Paging.PageSize;
        const ulong Directory = Pointers + Paging.PageSize;
        machine.Word(PageTables) = Pointers | Table;
        machine.Word(Pointers) = Directory | Table;
        for (ulong entry = 0; entry < 512; entry++)
        {
            machine.Word(Directory + (entry * sizeof(ulong))) = (entry * Paging.LargePageSize) | Leaf;
        }

        machine.Word(DescriptorTable + Code64) = 0x00AF_9B00_0000_FFFF;
        machine.Word(DescriptorTable + Data) = 0x00CF_9300_0000_FFFF;
        machine.Word(DescriptorTable + Code32) = 0x00CF_9B00_0000_FFFF;
        WritePointer(machine, DescriptorTable - sizeof(ushort));
        WritePointer(machine, RealModeCode + PointerOffset);
    }

    private static void WritePointer(VirtualMachine machine, ulong at)
    {
        machine.Shared.Memory.Write(new(at), (ushort)(Code32 + 7));
        machine.Shared.Memory.Write(new(at + sizeof(ushort)), DescriptorTable);
    }

    private static void WriteTrampoline(VirtualMachine machine)
    {
        Write(machine, RealModeCode, 16, a =>
        {
            a.cli();
            a.Print("R");
            a.mov(ax, cs);
            a.mov(ds, ax);
            a.mov(eax, 1);
            a.cpuid();
            a.mov(ebp, eax);
            a.mov(edi, edx);
            a.mov(ebx, 0x1234_5678);
            a.lgdt(__[PointerOffset]);
            a.mov(eax, 1);
            a.mov(cr0, eax);
            a.db(0x66, 0xEA);
            a.dd((uint)ProtectedModeCode);
            a.dw(Code32);
        });
        Write(machine, ProtectedModeCode, 32, a =>
        {
            a.mov(eax, Data);
            a.mov(ds, eax);
            a.mov(ss, eax);
            a.mov(esp, (uint)Stack);
            a.Print("P");
            a.mov(esi, 0x8765_4321);
            EnableLongMode(a);
            a.db(0xEA);
            a.dd((uint)TinyKernel.Entry);
            a.dw(Code64);
        });
    }

    private static void EnableLongMode(Assembler a)
    {
        a.mov(eax, Cr4PhysicalAddressExtension);
        a.mov(cr4, eax);
        a.mov(eax, (uint)PageTables);
        a.mov(cr3, eax);
        a.mov(ecx, EferIndex);
        a.rdmsr();
        a.or(eax, (int)EferLongAndNoExecute);
        a.wrmsr();
        a.mov(eax, Cr0PagingAndProtection);
        a.mov(cr0, eax);
    }

    private static void Write(VirtualMachine machine, ulong address, int bitness, Action<Assembler> write)
    {
        byte[] code = TinyMultiboot.Assemble(bitness, bitness == 16 ? 0 : address, write);
        code.CopyTo(machine.Shared.Memory.Slice(new(address), code.Length));
    }

    private static AssemblerMemoryOperand Double(uint address) => __dword_ptr[address];

    private static AssemblerMemoryOperand Word(uint address) => __word_ptr[address];
}
