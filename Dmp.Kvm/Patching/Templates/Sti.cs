using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// STI: virtual IF becomes 1, unless an interrupt waits for that: then the VMM does it and delivers the interrupt behind the next
/// instruction. JRCXZ, for it is the one conditional jump that leaves the flags alone.
/// <code>
/// mov [Scratch0], rcx
/// mov rcx, [InterruptPending]
/// jrcxz set
/// mov rcx, [Scratch0]
/// hlt                             ; emulate
/// set: mov qword [InterruptFlag], 200h
/// mov rcx, [Scratch0]
/// </code>
/// </summary>
internal sealed class Sti : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "sti";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) => instruction.Mnemonic == Mnemonic.Sti;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Label set = code.Asm.CreateLabel();
        code.Store(VcpuPageField.Scratch0, rcx);
        code.Load(rcx, VcpuPageField.InterruptPending);
        code.Asm.jrcxz(set);
        code.Load(rcx, VcpuPageField.Scratch0);
        code.Emulate();
        code.Asm.Label(ref set);
        code.Store(VcpuPageField.InterruptFlag, (int)Rflags.Interrupt);
        code.Load(rcx, VcpuPageField.Scratch0);
        code.ShadowNext();
    }
}
