namespace Dmp.Kvm.Interop;

/// <summary>The real registers of a vCPU as emulation sees them: KVM's, or an array of specs.</summary>
internal interface ICpuRegisters
{
    /// <summary>General registers, RIP and RFLAGS.</summary>
    ref KvmRegs Regs { get; }

    /// <summary>Segment and control registers.</summary>
    ref KvmSregs Sregs { get; }

    /// <summary>Writes one MSR.</summary>
    /// <returns>Whether it was taken.</returns>
    bool TrySetMsr(uint index, ulong value);

    /// <summary>Sets XCR0.</summary>
    /// <returns>Whether it was taken.</returns>
    bool TrySetXcr0(ulong value);
}
