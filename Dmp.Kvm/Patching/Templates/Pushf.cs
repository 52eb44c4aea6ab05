using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// PUSHFQ: the real flags with the virtual IF and IOPL. At CPL 3 the real IF is always 1 and the real IOPL 0, so adding and subtracting
/// does what masking would, without a change of flags.
/// <code>
/// pushfq
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// mov rax, [rsp]
/// mov rcx, [InterruptFlag]
/// lea rax, [rax + rcx - 200h]
/// mov rcx, [IoPrivilege]
/// lea rax, [rax + rcx]
/// mov [rsp], rax
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// </code>
/// </summary>
internal sealed class Pushf : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "pushf";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) => instruction.Mnemonic == Mnemonic.Pushfq;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        asm.pushfq();
        code.Save();
        asm.mov(rax, __qword_ptr[rsp]);
        code.Load(rcx, VcpuPageField.InterruptFlag);
        asm.lea(rax, __qword_ptr[rax + rcx - (int)Rflags.Interrupt]);
        code.Load(rcx, VcpuPageField.IoPrivilege);
        asm.lea(rax, __qword_ptr[rax + rcx]);
        asm.mov(__qword_ptr[rsp], rax);
        code.Restore();
    }
}
