using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;

namespace Dmp.Kvm.Machine;

/// <summary>What the hardware really has while guest code runs: CPL 3, our descriptor tables, our roots, IF set.</summary>
internal sealed class RealRegisters
{
    private readonly KvmVcpu kvm;
    private readonly int vcpu;
    private readonly Cr4 umip;

    // Where KVM does not know FSGSBASE, the instructions work at CPL 3 or are emulated.
    private readonly Cr4 mirroredCr4 = Cr4.TimeStampDisable;

    private const int StarKernelShift = 32;

    private const Cr0 FixedCr0 = Cr0.ProtectionEnable | Cr0.ExtensionType | Cr0.NumericError | Cr0.WriteProtect | Cr0.Paging;
    private const Cr4 FixedCr4 = Cr4.PhysicalAddressExtension | Cr4.FxSave | Cr4.SimdExceptions | Cr4.XSave;
    private const uint StructuredFeatures = 7;
    private const uint FsGsBaseEbx = 1u << 0;
    private const uint UmipEcx = 1u << 2;
    private const Efer RealEfer = Efer.SystemCall | Efer.LongModeEnable | Efer.LongModeActive | Efer.NoExecuteEnable;

    // What SYSCALL clears before the monitor's entry: single-stepping must not stop there, and AC and DF are the guest's business.
    private const Rflags SyscallMask = Rflags.Trap | Rflags.Direction | Rflags.AlignmentCheck | Rflags.NestedTask;

    /// <summary>Sets what never changes again while the guest is deprivileged.</summary>
    /// <param name="kvm">The vCPU.</param>
    /// <param name="vcpu">Its index.</param>
    /// <param name="supported">What KVM supports: it refuses CR4 bits whose feature it does not know.</param>
    internal RealRegisters(KvmVcpu kvm, int vcpu, ReadOnlySpan<KvmCpuidEntry> supported)
    {
        this.kvm = kvm;
        foreach (KvmCpuidEntry entry in supported)
        {
            if (entry.Function == StructuredFeatures && entry.Index == 0)
            {
                umip = (entry.Ecx & UmipEcx) != 0 ? Cr4.UserModeInstructionPrevention : Cr4.None;
                mirroredCr4 |= (entry.Ebx & FsGsBaseEbx) != 0 ? Cr4.FsGsBase : Cr4.None;
            }
        }

        this.vcpu = vcpu;
        ref KvmSregs sregs = ref kvm.Sregs;
        sregs.Ds = sregs.Es = sregs.Fs = sregs.Gs = new KvmSegment { Unusable = 1 };
        kvm.Regs = new KvmRegs { Rflags = (ulong)Rflags.AlwaysOne };
        LoadFixed();

        // The reset value is x87 only; the guest's XSETBV changes it.
        _ = kvm.TrySetXcr0(1);
    }

    /// <summary>Sets what is the same for all guest code that is deprivileged: descriptor tables, EFER, the way of SYSCALL.</summary>
    internal void LoadFixed()
    {
        ref KvmSregs sregs = ref kvm.Sregs;
        MonitorImage.LoadTables(vcpu, ref sregs);
        sregs.Efer = (ulong)RealEfer;
        _ = kvm.TrySetMsr((uint)Msr.Lstar, MonitorImage.SyscallEntry);
        _ = kvm.TrySetMsr((uint)Msr.Cstar, MonitorImage.SyscallEntry);
        _ = kvm.TrySetMsr((uint)Msr.Star, (ulong)MonitorSegments.MonitorCodeSelector << StarKernelShift);
        _ = kvm.TrySetMsr((uint)Msr.SyscallMask, (ulong)SyscallMask);

        // A null selector: SYSENTER faults.
        _ = kvm.TrySetMsr((uint)Msr.SysenterCs, 0);
    }

    /// <summary>Completes the registers for guest code.</summary>
    internal void Load(CpuState state, ulong root, bool stepping)
    {
        const Rflags Allowed = Rflags.UserChangeable | Rflags.Resume;
        ref KvmSregs sregs = ref kvm.Sregs;
        ref KvmRegs regs = ref kvm.Regs;
        bool compatibility = state.UserMode && state.CodeSelector == MonitorSegments.CompatibilityCodeSelector;
        sregs.Cs = compatibility
            ? MonitorSegments.CompatibilityCode()
            : MonitorSegments.Code(MonitorSegments.UserCodeSelector, 3);
        sregs.Ss = MonitorSegments.Data(MonitorSegments.UserDataSelector, 3);
        sregs.Cr3 = root;
        Cr0 mirrored = (Cr0)state.Cr0 & (Cr0.TaskSwitched | Cr0.Emulation | Cr0.MonitorCoprocessor);

        // Alignment checks apply to CPL 3 only: to the guest's user code, never to its kernel. A kernel without AC needs no difference.
        bool alignable = state.UserMode || (regs.Rflags & (ulong)Rflags.AlignmentCheck) == 0;
        Cr0 alignment = alignable ? (Cr0)state.Cr0 & Cr0.AlignmentMask : 0;
        sregs.Cr0 = (ulong)(FixedCr0 | mirrored | alignment);
        Cr4 timestamp = state.UserMode ? mirroredCr4 : mirroredCr4 & ~Cr4.TimeStampDisable;
        sregs.Cr4 = (ulong)(FixedCr4 | umip | (state.Cr4 & timestamp));
        regs.Rflags = (regs.Rflags & (ulong)Allowed) | (ulong)(Rflags.AlwaysOne | Rflags.Interrupt)
            | (stepping ? (ulong)Rflags.Trap : 0);
    }

    /// <summary>Sets the registers for monitor code.</summary>
    internal void LoadForMonitor(ulong rip, ulong root, ulong stack)
    {
        ref KvmSregs sregs = ref kvm.Sregs;
        sregs.Cs = MonitorSegments.Code(MonitorSegments.MonitorCodeSelector, 0);
        sregs.Ss = MonitorSegments.Data(CpuState.NullSelector, 0);
        sregs.Cr3 = root;
        sregs.Cr0 = (ulong)FixedCr0;
        sregs.Cr4 = (ulong)(FixedCr4 | umip);
        kvm.Regs.Rip = rip;
        kvm.Regs.Rsp = stack;
        kvm.Regs.Rflags = (ulong)Rflags.AlwaysOne;
    }
}
