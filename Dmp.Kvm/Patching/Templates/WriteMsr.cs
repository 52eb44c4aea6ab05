using Dmp.Kvm.Devices;
using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;
using Msr = Dmp.Kvm.Cpu.Msr;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// WRMSR, with ECX known only when it runs. The x2APIC's EOI register, while the VMM has nothing more to do for it than to note it (see
/// <see cref="ImplantEndOfInterrupt"/>), and the bases of FS, GS and the other GS, where WRFSBASE and WRGSBASE work; every other MSR,
/// and every value that is a fault, is left to the VMM.
/// <code>
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// mov ecx, ecx
/// lea rcx, [rcx - 80Bh]           ; JRCXZ, for it leaves the flags alone
/// jrcxz end
/// jmp base
/// end: mov ecx, eax
/// jrcxz low
/// jmp emulate
/// low: mov ecx, edx
/// jrcxz high
/// jmp emulate
/// high: xchg [SimpleEndOfInterrupt], rcx ; to 0
/// jrcxz emulate
/// jmp restore
/// base: lahf
/// seto al
/// mov [Scratch2], rax
/// mov eax, [Scratch0]
/// mov rcx, rdx
/// shl rcx, 32
/// or rcx, rax
/// mov rax, rcx
/// shl rax, 16
/// sar rax, 16
/// cmp rax, rcx                    ; canonical?
/// jne other
/// mov eax, [Scratch1]
/// sub eax, 0C0000100h
/// jz fs
/// dec eax
/// jz gs
/// dec eax
/// jnz other
/// mov [KernelGsBase], rcx
/// mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// jmp restore
/// fs: mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// wrfsbase rcx                    ; #UD without CR4.FSGSBASE: with RAX and RCX given back, all is as before
/// jmp restore
/// gs: ...                         ; the same with WRGSBASE
/// restore: mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// jmp done
/// other: mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// emulate: mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// hlt
/// done:
/// </code>
/// None of these writes has to serialize (AMD APM vol. 3, WRMSR; Intel SDM vol. 3, 11.12.3 and 9.3), but for the bases on Intel, where the
/// next use of the base waits for it as it does behind WRFSBASE.
/// </summary>
internal sealed class WriteMsr : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "wrmsr";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) =>
        host.FsGsBase && instruction.Mnemonic == Mnemonic.Wrmsr;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        Label other = asm.CreateLabel();
        Label emulate = asm.CreateLabel();
        Label restore = asm.CreateLabel();
        Label done = asm.CreateLabel();
        code.Save();
        EmitEndOfInterrupt(code, emulate, restore);
        EmitBases(code, other, restore);
        asm.Label(ref restore);
        code.Restore();
        asm.jmp(done);
        asm.Label(ref other);
        code.RestoreFlags();
        asm.Label(ref emulate);
        code.Restore();
        code.Emulate();
        asm.Label(ref done);
        asm.nop();
    }

    /// <summary>Without a change of flags. Goes on behind it, with RAX as it was, when the MSR is another.</summary>
    private static void EmitEndOfInterrupt(ImplantAssembler code, Label emulate, Label restore)
    {
        Assembler asm = code.Asm;
        Label end = asm.CreateLabel();
        Label low = asm.CreateLabel();
        Label high = asm.CreateLabel();
        Label ungranted = asm.CreateLabel();
        Label another = asm.CreateLabel();
        asm.mov(ecx, ecx);
        asm.lea(rcx, __qword_ptr[rcx - (int)LocalApic.EndOfInterruptMsr]);
        asm.jrcxz(end);
        asm.jmp(another);
        asm.Label(ref end);
        asm.mov(ecx, eax);
        asm.jrcxz(low);
        asm.jmp(emulate);
        asm.Label(ref low);
        asm.mov(ecx, edx);
        asm.jrcxz(high);
        asm.jmp(emulate);
        asm.Label(ref high);
        code.Exchange(VcpuPageField.SimpleEndOfInterrupt, rcx);
        asm.jrcxz(ungranted);
        asm.jmp(restore);
        asm.Label(ref ungranted);
        asm.jmp(emulate);
        asm.Label(ref another);
    }

    private static void EmitBases(ImplantAssembler code, Label other, Label restore)
    {
        const byte HalfBits = 32;
        const byte NonCanonicalBits = 16;
        Assembler asm = code.Asm;
        Label fs = asm.CreateLabel();
        Label gs = asm.CreateLabel();
        code.SaveFlags();
        code.Load(eax, VcpuPageField.Scratch0);
        asm.mov(rcx, rdx);
        asm.shl(rcx, HalfBits);
        asm.or(rcx, rax);
        asm.mov(rax, rcx);
        asm.shl(rax, NonCanonicalBits);
        asm.sar(rax, NonCanonicalBits);
        asm.cmp(rax, rcx);
        asm.jne(other);
        code.Load(eax, VcpuPageField.Scratch1);
        asm.sub(eax, unchecked((int)Msr.FsBase));
        asm.je(fs);
        asm.dec(eax);
        asm.je(gs);
        asm.dec(eax);
        asm.jne(other);
        code.Store(VcpuPageField.KernelGsBase, rcx);
        code.RestoreFlags();
        asm.jmp(restore);
        asm.Label(ref fs);
        code.RestoreFlags();
        asm.wrfsbase(rcx);
        asm.jmp(restore);
        asm.Label(ref gs);
        code.RestoreFlags();
        asm.wrgsbase(rcx);
    }
}
