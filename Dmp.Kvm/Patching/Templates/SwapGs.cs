using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// SWAPGS, where RDGSBASE and WRGSBASE work at CPL 3.
/// <code>
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// rdgsbase rax
/// mov rcx, [KernelGsBase]
/// mov [KernelGsBase], rax
/// wrgsbase rcx
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// </code>
/// </summary>
internal sealed class SwapGs : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "swapgs";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) =>
        host.FsGsBase && instruction.Mnemonic == Mnemonic.Swapgs;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        code.Save();
        asm.rdgsbase(rax);
        code.Load(rcx, VcpuPageField.KernelGsBase);
        code.Store(VcpuPageField.KernelGsBase, rax);
        asm.wrgsbase(rcx);
        code.Restore();
    }
}
