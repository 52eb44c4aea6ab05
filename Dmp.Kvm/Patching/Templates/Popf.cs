using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// POPFQ: the real flags from the stack, IF to the virtual one. TF, NT, VM, AC and another IOPL are left to the VMM, and so is an IF
/// that an interrupt waits for.
/// <code>
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// mov rax, [rsp]
/// test eax, 67100h                ; the flags may change: POPFQ loads them all
/// jnz emulate
/// and eax, 200h
/// jz set
/// mov rcx, [InterruptPending]
/// test rcx, rcx
/// jnz emulate
/// set: mov [InterruptFlag], rax
/// mov qword [IoPrivilege], 0
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// popfq
/// jmp done
/// emulate: mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// hlt
/// done:
/// </code>
/// </summary>
internal sealed class Popf : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "popf";

    /// <inheritdoc/>
    internal override int Version => 2;

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) => instruction.Mnemonic == Mnemonic.Popfq;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        Label set = asm.CreateLabel();
        Label emulate = asm.CreateLabel();
        Label done = asm.CreateLabel();
        code.Save();
        asm.mov(rax, __qword_ptr[rsp]);
        asm.test(eax, (int)(RareFlags.OnReturn | Rflags.AlignmentCheck));
        asm.jne(emulate);
        asm.and(eax, (int)Rflags.Interrupt);
        asm.je(set);
        code.Load(rcx, VcpuPageField.InterruptPending);
        asm.test(rcx, rcx);
        asm.jne(emulate);
        asm.Label(ref set);
        code.Store(VcpuPageField.InterruptFlag, rax);
        code.Store(VcpuPageField.IoPrivilege, 0);
        code.Restore();
        asm.popfq();
        asm.jmp(done);
        asm.Label(ref emulate);
        code.Restore();
        code.Emulate();
        asm.Label(ref done);
        asm.nop();
    }
}
