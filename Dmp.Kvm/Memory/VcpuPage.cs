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
    /// <summary>Tags of the virtual TLB.</summary>
    internal const int RootTags = 8;

    /// <summary>Fields for each in <see cref="VcpuPageField.Roots"/>.</summary>
    internal const int FieldsPerRoot = 3;

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

    /// <summary>The field that says where an entry is that leads to the page of <see cref="VcpuPageField.CheckedRoot"/>; the entry follows.</summary>
    /// <param name="step">0 for the entry of the top level.</param>
    internal static VcpuPageField CheckedSlot(int step) =>
        VcpuPageField.CheckedSlot4 + (step * (VcpuPageField.CheckedSlot3 - VcpuPageField.CheckedSlot4));

    /// <summary>The field with the CR3 value of a tag; its kernel view and its user view follow.</summary>
    internal static VcpuPageField RootKey(int tag) => VcpuPageField.Roots + (tag * FieldsPerRoot);

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

    /// <summary>Virtual CPL: 0 or 3.</summary>
    PrivilegeLevel,

    /// <summary>CS that SYSRET to 64-bit code loads.</summary>
    SysretSelector,

    /// <summary>Root of the user view; 0 when a return to user code must exit.</summary>
    UserRoot,

    /// <summary>Not 0: a CR3 load must exit.</summary>
    SlowRootLoad,

    /// <summary>Tag of the virtual TLB that is in use.</summary>
    CurrentTag,

    /// <summary>Where the gate of root loads goes on.</summary>
    GateReturn,

    /// <summary>RAX of the user code that the gate returns to; the frame of its IRETQ follows, in the processor's order.</summary>
    ReturnRax,

    /// <summary>RIP in that frame.</summary>
    ReturnRip,

    /// <summary>CS in that frame.</summary>
    ReturnCs,

    /// <summary>RFLAGS in that frame.</summary>
    ReturnFlags,

    /// <summary>RSP in that frame.</summary>
    ReturnRsp,

    /// <summary>SS in that frame.</summary>
    ReturnSs,

    /// <summary>For implants to keep a register in. Events are not delivered in the middle of an implant, so it needs no stack.</summary>
    Scratch0,

    /// <summary>As <see cref="Scratch0"/>.</summary>
    Scratch1,

    /// <summary>As <see cref="Scratch0"/>.</summary>
    Scratch2,

    /// <summary>As <see cref="Scratch0"/>.</summary>
    Scratch3,

    /// <summary>
    /// Not 0: the end of the interrupt in service has no effect but that. Code that ends it sets the field to 0, in the same instruction
    /// that reads it, and the VMM does the rest later: see <see cref="Devices.ImplantEndOfInterrupt"/>.
    /// </summary>
    SimpleEndOfInterrupt,

    /// <summary>Not 0: an NMI was delivered and no IRETQ ended it yet, so an IRETQ must exit.</summary>
    NmiBlocked,

    /// <summary>
    /// The CR3 value that implants may load without an exit, though it empties its entries, when the entries of the guest's tables that
    /// follow are what they were; 0 for none. See <see cref="Memory.CheckedRoot"/>.
    /// </summary>
    CheckedRoot,

    /// <summary>Where the entry of level 4 can be read.</summary>
    CheckedSlot4,

    /// <summary>What it was.</summary>
    CheckedEntry4,

    /// <summary>As <see cref="CheckedSlot4"/>, of level 3.</summary>
    CheckedSlot3,

    /// <summary>As <see cref="CheckedEntry4"/>, of level 3.</summary>
    CheckedEntry3,

    /// <summary>As <see cref="CheckedSlot4"/>, of level 2.</summary>
    CheckedSlot2,

    /// <summary>As <see cref="CheckedEntry4"/>, of level 2.</summary>
    CheckedEntry2,

    /// <summary>As <see cref="CheckedSlot4"/>, of level 1.</summary>
    CheckedSlot1,

    /// <summary>As <see cref="CheckedEntry4"/>, of level 1.</summary>
    CheckedEntry1,

    /// <summary>
    /// The roots of the virtual TLB's tags: for each the CR3 value that makes it current and keeps its entries, its kernel view and its
    /// user view.
    /// </summary>
    Roots,

    /// <summary>Number of fields.</summary>
    Count = Roots + (VcpuPage.RootTags * VcpuPage.FieldsPerRoot),
}
