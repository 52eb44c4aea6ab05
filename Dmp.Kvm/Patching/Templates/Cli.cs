using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// CLI: virtual IF becomes 0.
/// <code>
/// mov qword [InterruptFlag], 0
/// </code>
/// </summary>
internal sealed class Cli : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "cli";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) => instruction.Mnemonic == Mnemonic.Cli;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction) =>
        code.Store(VcpuPageField.InterruptFlag, 0);
}
