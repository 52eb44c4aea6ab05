using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// MOV from CR2 and CR3.
/// <code>
/// mov reg, [Cr2]
/// </code>
/// </summary>
internal sealed class ReadControl : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "read-control";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) =>
        instruction.Mnemonic == Mnemonic.Mov && instruction.Op1Register is Register.CR2 or Register.CR3;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction) => code.Load(
        new AssemblerRegister64(instruction.Op0Register),
        instruction.Op1Register == Register.CR2 ? VcpuPageField.Cr2 : VcpuPageField.Cr3);
}
