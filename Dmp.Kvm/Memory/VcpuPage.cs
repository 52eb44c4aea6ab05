using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Memory;

/// <summary>
/// The page that a vCPU shares with the implants it runs (virtual address <see cref="MachineLayout.VcpuPageAddress"/>, kernel views
/// only): the part of the virtual CPU state that implants read and write without an exit.
/// </summary>
/// <remarks>
/// Implants and the vCPU's thread take turns, for the thread only runs while the vCPU does not: no ordering is needed. Nobody else
/// touches it.
/// </remarks>
internal sealed class VcpuPage
{
    private readonly MappedMemory? region;
    private readonly ulong offset;
    private readonly ulong[] own = [];

    /// <summary>The page of a vCPU in the monitor region.</summary>
    internal VcpuPage(MappedMemory region, int vcpu)
    {
        this.region = region;
        offset = MachineLayout.VcpuBlock(vcpu) + MachineLayout.VcpuPageOffset;
    }

    /// <summary>A page of its own that no implant sees.</summary>
    internal VcpuPage() => own = new ulong[(int)VcpuPageField.Count];

    /// <summary>Address of a field, for implants.</summary>
    internal static ulong Address(VcpuPageField field) => MachineLayout.VcpuPageAddress + ((ulong)field * sizeof(ulong));

    /// <summary>A field.</summary>
    internal ref ulong this[VcpuPageField field] => ref region is null
        ? ref own[(int)field]
        : ref region.Word(offset + ((ulong)field * sizeof(ulong)));
}

/// <summary>The fields of a <see cref="VcpuPage"/>, 8 bytes each.</summary>
internal enum VcpuPageField
{
    /// <summary>Virtual IF, as the bit stands in RFLAGS: 0 or 200h.</summary>
    InterruptFlag,

    /// <summary>Not 0: an interrupt waits for IF, so code that sets it must exit.</summary>
    InterruptPending,

    /// <summary>Virtual IOPL as it stands in RFLAGS.</summary>
    IoPrivilege,

    /// <summary>CR2.</summary>
    Cr2,

    /// <summary>CR3 as the guest reads it.</summary>
    Cr3,

    /// <summary>MSR KernelGSBase.</summary>
    KernelGsBase,

    /// <summary>Virtual CS.</summary>
    CodeSelector,

    /// <summary>Virtual SS.</summary>
    StackSelector,

    /// <summary>For implants to keep a register in. Events are not delivered in the middle of an implant, so it needs no stack.</summary>
    Scratch0,

    /// <summary>As <see cref="Scratch0"/>.</summary>
    Scratch1,

    /// <summary>As <see cref="Scratch0"/>.</summary>
    Scratch2,

    /// <summary>Number of fields.</summary>
    Count,
}
