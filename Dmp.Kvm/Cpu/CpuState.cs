using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Cpu;

/// <summary>
/// What the guest believes about one CPU, as far as it differs from the real registers: privilege, interrupt flag, control registers,
/// descriptor tables, system MSRs. The general registers, FS and GS bases and the arithmetic flags are the real ones. Belongs to the
/// vCPU's thread; the properties lie in the page that its implants share.
/// </summary>
internal sealed class CpuState(VcpuPage page)
{
    internal const ushort NullSelector = 0;

    /// <summary>Value of IA32_PAT after reset (AMD APM vol. 2, 7.8.2).</summary>
    private const ulong PatAtReset = 0x0007_0406_0007_0406;

    /// <summary>A state that no implant shares.</summary>
    internal CpuState()
        : this(new VcpuPage())
    {
    }

    /// <summary>The page shared with implants.</summary>
    internal VcpuPage Page => page;

    /// <summary>Virtual CPL: 0 or 3.</summary>
    internal int Cpl
    {
        get => (int)page[VcpuPageField.PrivilegeLevel];
        set => page[VcpuPageField.PrivilegeLevel] = (ulong)value;
    }

    /// <summary>Virtual IF.</summary>
    internal bool InterruptFlag
    {
        get => page[VcpuPageField.InterruptFlag] != 0;
        set => page[VcpuPageField.InterruptFlag] = value ? (ulong)Rflags.Interrupt : 0;
    }

    /// <summary>Whether NMIs are held back: from the delivery of one to the next IRET (AMD APM vol. 2, 8.2.3).</summary>
    internal bool NmiBlocked
    {
        get => page[VcpuPageField.NmiBlocked] != 0;
        set => page[VcpuPageField.NmiBlocked] = value ? 1UL : 0;
    }

    /// <summary>Virtual IOPL, as the two bits stand in RFLAGS.</summary>
    internal ulong IoPrivilege
    {
        get => page[VcpuPageField.IoPrivilege];
        set => page[VcpuPageField.IoPrivilege] = value;
    }

    internal ulong Cr0 = (ulong)(Cpu.Cr0.ProtectionEnable | Cpu.Cr0.ExtensionType | Cpu.Cr0.NumericError | Cpu.Cr0.Paging);

    internal ulong Cr2
    {
        get => page[VcpuPageField.Cr2];
        set => page[VcpuPageField.Cr2] = value;
    }

    internal ulong Cr3
    {
        get => page[VcpuPageField.Cr3];
        set => page[VcpuPageField.Cr3] = value;
    }

    internal Cr4 Cr4 = Cr4.PhysicalAddressExtension;
    internal Efer Efer = Efer.LongModeEnable | Efer.LongModeActive;

    internal ulong GdtBase;
    internal ushort GdtLimit;
    internal ulong IdtBase;
    internal ushort IdtLimit;
    internal ushort LdtSelector;
    internal ushort TaskSelector;
    internal ulong TaskBase;
    internal uint TaskLimit;

    internal ushort CodeSelector
    {
        get => (ushort)page[VcpuPageField.CodeSelector];
        set => page[VcpuPageField.CodeSelector] = value;
    }

    internal ushort StackSelector
    {
        get => (ushort)page[VcpuPageField.StackSelector];
        set => page[VcpuPageField.StackSelector] = value;
    }

    internal ulong Star
    {
        get;
        set
        {
            const int UserShift = 48;
            const ulong LongCodeOffset = 16;
            const ulong Rpl = 3;
            field = value;
            page[VcpuPageField.SysretSelector] = ((value >> UserShift) + LongCodeOffset) | Rpl;
        }
    }

    internal ulong LongStar;
    internal ulong CompatibilityStar;
    internal ulong SyscallMask;

    internal ulong KernelGsBase
    {
        get => page[VcpuPageField.KernelGsBase];
        set => page[VcpuPageField.KernelGsBase] = value;
    }

    internal ulong TscAux;
    internal ulong Pat = PatAtReset;
    internal ulong SysenterCs;
    internal ulong SysenterEsp;
    internal ulong SysenterEip;
    internal ulong MiscEnable;
    internal ulong Xcr0 = 1;
    internal ulong KvmSystemTime;

    internal readonly ulong[] DebugAddress = new ulong[4];
    internal ulong Dr6 = (ulong)Cpu.Dr6.Fixed;
    internal ulong Dr7 = Dr7AtReset;

    /// <summary>Value of DR7 after reset.</summary>
    internal const ulong Dr7AtReset = 0x400;

    /// <summary>Whether the guest runs its user code.</summary>
    internal bool UserMode => Cpl == 3;

    /// <summary>The paging mode for walks of the guest's tables.</summary>
    internal PagingMode Paging => new(
        Cr3,
        (Cr0 & (ulong)Cpu.Cr0.WriteProtect) != 0,
        (Efer & Efer.NoExecuteEnable) != 0,
        (Cr4 & Cr4.PageGlobal) != 0);
}
