using Dmp.Kvm.Cpu;

namespace Dmp.Kvm.Patching;

/// <summary>Flags that implants leave to the VMM when they would be loaded.</summary>
internal static class RareFlags
{
    /// <summary>By IRET and SYSRET: single-stepping begins, nested tasks do not exist, and IOPL is virtual.</summary>
    internal const Rflags OnReturn = Rflags.Trap | Rflags.NestedTask | Rflags.Virtual8086 | Rflags.IoPrivilege;
}
