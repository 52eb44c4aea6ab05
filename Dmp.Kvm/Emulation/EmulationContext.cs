using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Emulation;

/// <summary>What emulated instructions work on: one vCPU's registers, state, memory, TLB and devices.</summary>
internal sealed class EmulationContext
{
    /// <summary>Index of the vCPU.</summary>
    internal required int Index { get; init; }

    /// <summary>Real registers.</summary>
    internal required ICpuRegisters Vcpu { get; init; }

    /// <summary>Virtual CPU state.</summary>
    internal required CpuState State { get; init; }

    /// <summary>Guest virtual memory.</summary>
    internal required GuestAccess Access { get; init; }

    /// <summary>Guest RAM.</summary>
    internal required GuestMemory Memory { get; init; }

    /// <summary>The vCPU's TLB.</summary>
    internal required VirtualTlb Tlb { get; init; }

    /// <summary>Delivers INT n.</summary>
    internal required EventDelivery Events { get; init; }

    /// <summary>The devices.</summary>
    internal required Chipset Chipset { get; init; }

    /// <summary>CPUID.</summary>
    internal required CpuidModel Cpuid { get; init; }

    /// <summary>The time.</summary>
    internal required IClock Clock { get; init; }

    /// <summary>Paravirtual clock of the machine.</summary>
    internal required ParavirtualClock ParavirtualClock { get; init; }

    /// <summary>Accesses to MSRs that nobody owns.</summary>
    internal required UnownedMsrs UnownedMsrs { get; init; }

    /// <summary>The fault of the instruction, when it ended with <see cref="Outcome.Fault"/>.</summary>
    internal GuestFault Fault { get; set; }

    /// <summary>Ends an instruction with a fault.</summary>
    internal Outcome Raise(in GuestFault fault)
    {
        Fault = fault;
        return Outcome.Fault;
    }

    /// <summary>Ends an instruction with the fault of its last memory access.</summary>
    internal Outcome RaiseAccess() => Raise(Access.Fault);

    /// <summary>As <see cref="RaiseAccess"/>, of an access to the stack: an address that is not canonical is #SS there.</summary>
    internal Outcome RaiseStackAccess() => Raise(
        Access.Fault.Vector == ExceptionVector.GeneralProtection ? new GuestFault(ExceptionVector.Stack, 0) : Access.Fault);
}

/// <summary>How an emulated instruction ended.</summary>
internal enum Outcome
{
    /// <summary>It is done; RIP goes behind it.</summary>
    Done,

    /// <summary>It is done and has set RIP itself.</summary>
    Jumped,

    /// <summary>It faults: <see cref="EmulationContext.Fault"/>.</summary>
    Fault,

    /// <summary>HLT: RIP goes behind it, then the CPU waits.</summary>
    Halt,

    /// <summary>Delivering an event failed: triple fault.</summary>
    Shutdown,

    /// <summary>It leaves 64-bit mode, and has not begun.</summary>
    LeavesLongMode,

    /// <summary>It is not an instruction that has to be emulated.</summary>
    NotSensitive,

    /// <summary>It has to be emulated, and nobody can.</summary>
    Unsupported,
}
