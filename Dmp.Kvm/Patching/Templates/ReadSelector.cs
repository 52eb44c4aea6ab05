using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// MOV from CS and SS to a register of 32 or 64 bits: the virtual selector, its upper bits clear.
/// <code>
/// mov reg32, [CodeSelector]
/// </code>
/// </summary>
internal sealed class ReadSelector : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "read-selector";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) =>
        instruction.Mnemonic == Mnemonic.Mov && instruction.Op1Register is Register.CS or Register.SS
        && instruction.Op0Kind == OpKind.Register && instruction.Op0Register.GetSize() > sizeof(ushort);

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction) => code.Load(
        new AssemblerRegister32(instruction.Op0Register.GetFullRegister32()),
        instruction.Op1Register == Register.CS ? VcpuPageField.CodeSelector : VcpuPageField.StackSelector);
}
