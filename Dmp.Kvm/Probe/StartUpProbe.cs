using Dmp.Kvm.Boot;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Probe;

/// <summary>
/// Whether a KVM runs what <see cref="StartUpPhase"/> needs, and so all vCPUs but the first: the shortest way from real mode to 64-bit
/// mode (AMD APM vol. 2, 14.8), in single steps.
/// </summary>
internal static class StartUpProbe
{
    private const ulong CodeAddress = 0x1000;
    private const ulong GdtAddress = 0x2000;
    private const ulong GdtPointerAddress = 0x2100;
    private const ulong RootAddress = 0x3000;
    private const ulong PointerTableAddress = 0x4000;
    private const ulong DirectoryAddress = 0x5000;
    private const byte DonePort = 0x80;
    private const ushort Code32 = 0x08;
    private const ushort Code64 = 0x10;
    private const int StepLimit = 100;

    private static readonly ulong[] Gdt = [0, BootGdt.CodeSegment(BootMode.ProtectedMode), BootGdt.CodeSegment(BootMode.LongMode)];

    /// <summary>Tries it, in a VM of its own.</summary>
    internal static bool Works(KvmSystem kvm)
    {
        try
        {
            return Try(kvm);
        }
        catch (KvmException)
        {
            return false;
        }
    }

    private static bool Try(KvmSystem kvm)
    {
        using KvmVm vm = kvm.CreateVm();
        using MappedMemory memory = MappedMemory.Create("dmp-probe-start-up", Paging.LargePageSize);
        WriteTrampoline(memory);
        vm.AddMemory(0, memory, 0, memory.Size);
        using KvmVcpu vcpu = vm.CreateVcpu(0);
        vcpu.SetCpuid(kvm.SupportedCpuid());
        vcpu.Sregs = NativeSegments.RealMode(0, vcpu.Sregs.ApicBase);
        vcpu.Regs = new KvmRegs { Rip = CodeAddress, Rflags = (ulong)Rflags.AlwaysOne };

        // The step is armed for the RIP that KVM knows.
        vcpu.Exchange(loadRegisters: true);
        for (int step = 0; step < StepLimit && !StartUpPhase.IsSixtyFourBit(vcpu.Sregs); step++)
        {
            if (!vcpu.TryStep() || vcpu.Run(loadRegisters: false) is not (KvmExitReason.Debug or KvmExitReason.Interrupted))
            {
                return false;
            }
        }

        vcpu.EndDebugging();
        for (int attempt = 0; attempt < StepLimit; attempt++)
        {
            KvmExitReason reason = vcpu.Run(loadRegisters: false);
            if (reason != KvmExitReason.Interrupted)
            {
                return reason == KvmExitReason.Io && vcpu.Exit.IoPort == DonePort && StartUpPhase.IsSixtyFourBit(vcpu.Sregs);
            }
        }

        return false;
    }

    private static void WriteTrampoline(MappedMemory memory)
    {
        const ulong Table = (ulong)(PageEntry.Present | PageEntry.Writable);
        memory.Word(RootAddress) = PointerTableAddress | Table;
        memory.Word(PointerTableAddress) = DirectoryAddress | Table;
        memory.Word(DirectoryAddress) = Table | (ulong)PageEntry.Large;
        for (int entry = 0; entry < Gdt.Length; entry++)
        {
            memory.Word(GdtAddress + (ulong)(entry * sizeof(ulong))) = Gdt[entry];
        }

        memory.Word(GdtPointerAddress) = ((ulong)(Gdt.Length * sizeof(ulong)) - 1) | (GdtAddress << 16);
        ulong next = Write(memory, CodeAddress, 16, code =>
        {
            code.lgdt(__[(ushort)GdtPointerAddress]);
            code.mov(eax, cr0);
            code.or(eax, (int)Cr0.ProtectionEnable);
            code.mov(cr0, eax);
        });
        next = WriteFarJump(memory, next, Code32, operandPrefix: true);
        next = Write(memory, next, 32, code =>
        {
            code.mov(eax, cr4);
            code.or(eax, (int)Cr4.PhysicalAddressExtension);
            code.mov(cr4, eax);
            code.mov(eax, (int)RootAddress);
            code.mov(cr3, eax);
            code.mov(ecx, unchecked((int)Msr.Efer));
            code.rdmsr();
            code.or(eax, (int)Efer.LongModeEnable);
            code.wrmsr();
            code.mov(eax, cr0);
            code.or(eax, unchecked((int)Cr0.Paging));
            code.mov(cr0, eax);
        });
        next = WriteFarJump(memory, next, Code64, operandPrefix: false);
        _ = Write(memory, next, 64, code => code.@out(DonePort, al));
    }

    private static ulong Write(MappedMemory memory, ulong address, int bits, Action<Assembler> write)
    {
        Assembler assembler = new(bits);
        write(assembler);
        using MemoryStream bytes = new();
        _ = assembler.Assemble(new StreamCodeWriter(bytes), address);
        bytes.ToArray().CopyTo(memory.Slice(address, (int)bytes.Length));
        return address + (ulong)bytes.Length;
    }

    /// <summary>JMP to the next instruction, in another code segment.</summary>
    private static ulong WriteFarJump(MappedMemory memory, ulong address, ushort selector, bool operandPrefix)
    {
        byte[] jump = [.. operandPrefix ? (byte[])[0x66] : [], 0xEA, 0, 0, 0, 0, (byte)selector, 0];
        ulong next = address + (ulong)jump.Length;
        BitConverter.TryWriteBytes(jump.AsSpan(operandPrefix ? 2 : 1), (uint)next);
        jump.CopyTo(memory.Slice(address, jump.Length));
        return next;
    }
}
