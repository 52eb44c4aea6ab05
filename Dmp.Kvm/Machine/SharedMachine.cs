using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Emulation;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Patching;

namespace Dmp.Kvm.Machine;

/// <summary>What the vCPUs of a machine share. Immutable; each part says how it may be used by several threads.</summary>
internal sealed record SharedMachine
{
    internal required GuestMemory Memory { get; init; }

    internal required MappedMemory Monitor { get; init; }

    internal required CodePages Code { get; init; }

    /// <summary>The patch engine, or null.</summary>
    internal required PatchEngine? Patches { get; init; }

    internal required CpuidModel Cpuid { get; init; }

    internal required KvmCpuidEntry[] SupportedCpuid { get; init; }

    /// <summary>Whether code in the VM gets KVM's answers to CPUID, at CPL 3 or before 64-bit mode.</summary>
    internal bool KvmAnswersCpuid { get; init; }

    /// <summary>Whether KVM returns for RDMSR and WRMSR at CPL 0.</summary>
    internal bool WatchesMsrs { get; init; }

    internal required IClock Clock { get; init; }

    internal required Chipset Chipset { get; init; }

    internal required MachineControl Control { get; init; }

    internal required TlbShootdown Shootdown { get; init; }

    internal required ParavirtualClock ParavirtualClock { get; init; }

    internal required UnownedMsrs UnownedMsrs { get; init; }

    /// <summary>Whether each vCPU compares its TLB with the guest's tables from time to time.</summary>
    internal required bool Audit { get; init; }

    /// <summary>
    /// How long a vCPU that a kick found in the middle of something runs on before it is kicked again. Longer than an entry takes, or it
    /// would never come on.
    /// </summary>
    internal required long KickRetryNanoseconds { get; init; }

    /// <summary>Whether CPL 0 code runs natively, so that guest code is entered through the monitor.</summary>
    internal required bool MonitorIsNative { get; init; }

    /// <summary>Whether the TLB has to be flushed behind the removal of a shadow entry.</summary>
    internal required bool RemovalsNeedFlush { get; init; }

    /// <summary>
    /// What KVM is told about a vCPU's CPUID. It cannot be changed once the vCPU has run, so it is the same before and in 64-bit mode.
    /// </summary>
    internal KvmCpuidEntry[] KvmCpuid(int vcpu) => KvmAnswersCpuid ? Cpuid.ForKvm(vcpu) : SupportedCpuid;
}
