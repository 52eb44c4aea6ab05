using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;

namespace Dmp.Kvm.Machine;

/// <summary>What the hardware really has while guest code runs: CPL 3, our descriptor tables, our roots, IF set.</summary>
internal sealed class RealRegisters
{
    private readonly KvmVcpu kvm;
    private readonly MappedMemory? monitor;
    private readonly ulong frame;
    private readonly ulong frameAddress;
    private readonly int vcpu;
    private readonly Cr4 umip;
    private KvmRegs guest;

    // Whether CR3 is one of our roots, so that the vCPU can be in the monitor: from the first entry on, and not in the start-up phase.
    private bool rooted;

    // Where KVM does not know FSGSBASE, the instructions work at CPL 3 or are emulated.
    private readonly Cr4 mirroredCr4 = Cr4.TimeStampDisable;

    private const int StarKernelShift = 32;
    private const int PrivilegeMask = 3;

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
    /// <param name="monitor">
    /// The monitor region, to enter guest code by the monitor's stub; null to have KVM begin in guest code. An exit leaves the vCPU in the
    /// monitor. From there KVM takes a new CR3 as a reason to build its own tables anew, which costs much on a KVM with EPT or NPT; on one
    /// that emulates CPL 0, the stub costs more.
    /// </param>
    internal RealRegisters(KvmVcpu kvm, int vcpu, ReadOnlySpan<KvmCpuidEntry> supported, MappedMemory? monitor)
    {
        this.kvm = kvm;
        this.monitor = monitor;
        frame = MachineLayout.VcpuBlock(vcpu) + MachineLayout.EntryFrameOffset;
        frameAddress = MachineLayout.MonitorBase + frame;
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
        rooted = false;
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
        Cr0 mirrored = (Cr0)state.Cr0 & (Cr0.TaskSwitched | Cr0.Emulation | Cr0.MonitorCoprocessor);

        // Alignment checks apply to CPL 3 only: to the guest's user code, never to its kernel. A kernel without AC needs no difference.
        bool alignable = state.UserMode || (regs.Rflags & (ulong)Rflags.AlignmentCheck) == 0;
        Cr0 alignment = alignable ? (Cr0)state.Cr0 & Cr0.AlignmentMask : 0;
        sregs.Cr0 = (ulong)(FixedCr0 | mirrored | alignment);
        Cr4 timestamp = state.UserMode ? mirroredCr4 : mirroredCr4 & ~Cr4.TimeStampDisable;
        sregs.Cr4 = (ulong)(FixedCr4 | umip | (state.Cr4 & timestamp));
        regs.Rflags = (regs.Rflags & (ulong)Allowed) | (ulong)(Rflags.AlwaysOne | Rflags.Interrupt)
            | (stepping ? (ulong)Rflags.Trap : 0);

        // IRETQ refuses an address that KVM would take.
        if (monitor is not null && rooted && Paging.IsCanonical(regs.Rip))
        {
            LoadForEntryStub(compatibility, root);
            return;
        }

        sregs.Cs = compatibility
            ? MonitorSegments.CompatibilityCode()
            : MonitorSegments.Code(MonitorSegments.UserCodeSelector, 3);
        sregs.Ss = MonitorSegments.Data(MonitorSegments.UserDataSelector, 3);
        sregs.Cr3 = root;
        rooted = true;
    }

    /// <summary>
    /// After a kick: if it came before the entry stub's first instruction, the registers are the guest's again, as they were before
    /// <see cref="Load"/>.
    /// </summary>
    /// <returns>Whether the guest was not entered.</returns>
    internal bool TryTakeBack()
    {
        // User code that jumps to the stub's address comes as far as its fault, at CPL 3.
        if (monitor is null || (kvm.Sregs.Cs.Selector & PrivilegeMask) != 0
            || kvm.Regs.Rip is not (MonitorImage.EntryStub or MonitorImage.EntryStubSameRoot))
        {
            return false;
        }

        kvm.Regs = guest;
        return true;
    }

    private void LoadForEntryStub(bool compatibility, ulong root)
    {
        const int Root = 0;
        const int Accumulator = 1;
        const int ReturnFrame = 2;
        ref KvmRegs regs = ref kvm.Regs;
        guest = regs;
        Word(Root) = root;
        Word(Accumulator) = regs.Rax;
        Word(ReturnFrame) = regs.Rip;
        Word(ReturnFrame + 1) = compatibility ? MonitorSegments.CompatibilityCodeSelector : MonitorSegments.UserCodeSelector;
        Word(ReturnFrame + 2) = regs.Rflags;
        Word(ReturnFrame + 3) = regs.Rsp;
        Word(ReturnFrame + 4) = MonitorSegments.UserDataSelector;
        bool sameRoot = kvm.Sregs.Cr3 == root;
        regs.Rip = sameRoot ? MonitorImage.EntryStubSameRoot : MonitorImage.EntryStub;
        regs.Rsp = frameAddress + (ulong)((sameRoot ? Accumulator : Root) * sizeof(ulong));
        regs.Rflags = (ulong)Rflags.AlwaysOne;
        EnterMonitor();
    }

    private ref ulong Word(int index) => ref monitor!.Word(frame + (ulong)(index * sizeof(ulong)));

    /// <summary>CPL 0, if the vCPU is not there already.</summary>
    private void EnterMonitor()
    {
        ref KvmSregs sregs = ref kvm.Sregs;
        if ((sregs.Cs.Selector & PrivilegeMask) != 0 || !rooted)
        {
            sregs.Cs = MonitorSegments.Code(MonitorSegments.MonitorCodeSelector, 0);
            sregs.Ss = MonitorSegments.Data(CpuState.NullSelector, 0);
        }
    }

    /// <summary>Sets the registers for monitor code.</summary>
    internal void LoadForMonitor(ulong rip, ulong root, ulong stack)
    {
        ref KvmSregs sregs = ref kvm.Sregs;
        EnterMonitor();
        if (!rooted)
        {
            // Any root will do afterwards: all of them map the monitor.
            sregs.Cr3 = root;
            sregs.Cr0 = (ulong)FixedCr0;
            sregs.Cr4 = (ulong)(FixedCr4 | umip);
        }

        kvm.Regs.Rip = rip;
        kvm.Regs.Rsp = stack;
        kvm.Regs.Rflags = (ulong)Rflags.AlwaysOne;
    }
}
