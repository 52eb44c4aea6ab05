using Iced.Intel;

namespace Dmp.Kvm.Patching;

/// <summary>
/// The recipe for a class of sensitive instructions: code that does at CPL 3, on the vCPU's page, what the instruction does at CPL 0.
/// A template is one file: a class with a parameterless constructor that derives from this one is found by itself.
/// </summary>
/// <remarks>
/// Rules for the code: it changes no register and no flag that the instruction does not change. Everything that can fault stands before
/// everything that has an effect, for the guest gets its fault at the guest's instruction, which then runs again from its start; RAX and
/// RCX alone may have changed, between <see cref="ImplantAssembler.Save"/> and <see cref="ImplantAssembler.Restore"/>. Events are never
/// delivered in the middle. What the code cannot do, it leaves to <see cref="ImplantAssembler.Emulate"/> with all registers as they
/// were.
/// </remarks>
internal abstract class ImplantTemplate
{
    /// <summary>Name, in kebab case.</summary>
    internal abstract string Name { get; }

    /// <summary>Counted up whenever the code changes: patches of a journal with another version are planned anew.</summary>
    internal virtual int Version => 1;

    /// <summary>Whether the template knows an instruction of the guest's kernel.</summary>
    /// <param name="instruction">The instruction, decoded at its guest address.</param>
    /// <param name="host">What the host can do.</param>
    internal abstract bool Matches(in Instruction instruction, in TemplateHost host);

    /// <summary>Writes the code in place of the instruction.</summary>
    internal abstract void Emit(ImplantAssembler code, in Instruction instruction);
}

/// <summary>What templates need of a host.</summary>
/// <param name="FsGsBase">RDGSBASE and WRGSBASE work natively at CPL 3.</param>
internal readonly record struct TemplateHost(bool FsGsBase);
