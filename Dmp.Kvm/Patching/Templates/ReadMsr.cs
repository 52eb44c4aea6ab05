using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;
using Msr = Dmp.Kvm.Cpu.Msr;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// RDMSR of the bases of FS, GS and the other GS, where RDFSBASE and RDGSBASE work. ECX is known only when it runs; every other MSR is
/// left to the VMM.
/// <code>
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// lahf
/// seto al
/// mov [Scratch2], rax
/// mov ecx, [Scratch1]
/// sub ecx, 0C0000100h
/// jz fs
/// dec ecx
/// jz gs
/// dec ecx
/// jnz emulate
/// mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// mov rcx, [KernelGsBase]
/// jmp have
/// fs: mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// rdfsbase rcx                    ; #UD without CR4.FSGSBASE: with RAX and RCX given back, all is as before
/// jmp have
/// gs: ...                         ; the same with RDGSBASE
/// have: mov [Scratch3], rcx
/// mov eax, [Scratch3]
/// mov edx, [Scratch3 + 4]
/// mov rcx, [Scratch1]
/// jmp done
/// emulate: mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// hlt
/// done:
/// </code>
/// </summary>
internal sealed class ReadMsr : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "rdmsr";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) =>
        host.FsGsBase && instruction.Mnemonic == Mnemonic.Rdmsr;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        Label fs = asm.CreateLabel();
        Label gs = asm.CreateLabel();
        Label have = asm.CreateLabel();
        Label emulate = asm.CreateLabel();
        Label done = asm.CreateLabel();
        code.Save();
        code.SaveFlags();
        code.Load(ecx, VcpuPageField.Scratch1);
        asm.sub(ecx, unchecked((int)Msr.FsBase));
        asm.je(fs);
        asm.dec(ecx);
        asm.je(gs);
        asm.dec(ecx);
        asm.jne(emulate);
        code.RestoreFlags();
        code.Load(rcx, VcpuPageField.KernelGsBase);
        asm.jmp(have);
        asm.Label(ref fs);
        code.RestoreFlags();
        asm.rdfsbase(rcx);
        asm.jmp(have);
        asm.Label(ref gs);
        code.RestoreFlags();
        asm.rdgsbase(rcx);
        asm.Label(ref have);
        code.Store(VcpuPageField.Scratch3, rcx);
        code.Load(eax, VcpuPageField.Scratch3);
        code.LoadUpper(edx, VcpuPageField.Scratch3);
        code.Load(rcx, VcpuPageField.Scratch1);
        asm.jmp(done);
        asm.Label(ref emulate);
        code.RestoreFlags();
        code.Restore();
        code.Emulate();
        asm.Label(ref done);
        asm.nop();
    }
}
