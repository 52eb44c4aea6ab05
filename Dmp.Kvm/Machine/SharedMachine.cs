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

    /// <summary>Whether the hardware walks the shadow tables itself, so that changes need a TLB flush.</summary>
    internal required bool HardwareWalksTables { get; init; }
}
