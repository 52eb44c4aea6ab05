using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// MOV from CS and SS to a register: the virtual selector. The upper bits of a 32-bit or 64-bit register become 0.
/// <code>
/// mov reg, [CodeSelector]
/// </code>
/// </summary>
internal sealed class ReadSelector : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "read-selector";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) =>
        instruction.Mnemonic == Mnemonic.Mov && instruction.Op1Register is Register.CS or Register.SS
        && instruction.Op0Kind == OpKind.Register;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        VcpuPageField field = instruction.Op1Register == Register.CS ? VcpuPageField.CodeSelector : VcpuPageField.StackSelector;
        if (instruction.Op0Register.GetSize() == sizeof(ushort))
        {
            code.Load(new AssemblerRegister16(instruction.Op0Register), field);
        }
        else
        {
            code.Load(new AssemblerRegister32(instruction.Op0Register.GetFullRegister32()), field);
        }
    }
}
