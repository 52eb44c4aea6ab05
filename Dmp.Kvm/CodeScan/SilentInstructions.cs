using Iced.Intel;

namespace Dmp.Kvm.CodeScan;

/// <summary>
/// The silent sensitive instructions: those that at CPL 3 neither fault nor do what they do at CPL 0 (Popek and Goldberg, 1974;
/// Robin and Irvine, 2000, for the list on x86).
/// </summary>
internal static class SilentInstructions
{
    /// <summary>Whether an instruction of kernel code must be replaced by a trap before it may run at CPL 3.</summary>
    internal static bool IsSilent(in Instruction instruction) => instruction.Mnemonic switch
    {
        Mnemonic.Pushfq or Mnemonic.Pushfd or Mnemonic.Pushf => true,
        Mnemonic.Popfq or Mnemonic.Popfd or Mnemonic.Popf => true,
        Mnemonic.Iretq or Mnemonic.Iretd or Mnemonic.Iret => true,
        Mnemonic.Cpuid or Mnemonic.Vmmcall or Mnemonic.Vmcall => true,
        Mnemonic.Lar or Mnemonic.Lsl or Mnemonic.Verr or Mnemonic.Verw => true,

        // UMIP makes these trap where it exists; where it does not, only the trap byte does.
        Mnemonic.Sgdt or Mnemonic.Sidt or Mnemonic.Sldt or Mnemonic.Str or Mnemonic.Smsw => true,

        // CS and SS show the real selectors, with RPL 3.
        Mnemonic.Mov => instruction.Op1Register is Register.CS or Register.SS,
        _ => false,
    };
}
