namespace Dmp.Kvm.Memory;

/// <summary>
/// Every address of the machine that is ours to choose. Machine addresses are KVM's guest-physical ones; monitor addresses are
/// virtual and valid in every shadow root.
/// </summary>
/// <remarks>
/// The monitor is one region of machine memory: shared pages first (descriptor tables, stubs, static page tables), then one block a
/// vCPU, the arena of implants, and one pool of shadow tables a vCPU. It is mapped linearly at <see cref="MonitorBase"/>,
/// supervisor-only. What implants run from and work on is mapped a second time, accessible at CPL 3 but in kernel views alone, at
/// <see cref="ExposedBase"/>.
/// </remarks>
internal static class MachineLayout
{
    /// <summary>RAM below the hole for memory-mapped devices ends here at the latest.</summary>
    internal const ulong LowRamLimit = 0xC000_0000;

    /// <summary>RAM that does not fit below the hole begins here.</summary>
    internal const ulong HighRamBase = 0x1_0000_0000;

    /// <summary>The most RAM a machine can have.</summary>
    internal const ulong MaximumRam = 32UL << 30;

    /// <summary>Machine address of the monitor region, above all RAM.</summary>
    internal const ulong MonitorMachineBase = 0x10_0000_0000;

    /// <summary>
    /// Virtual address of the monitor region: the hole that Linux reserves for hypervisors (Documentation/x86/x86_64/mm.rst), the
    /// first of the negative half, supervisor-only.
    /// </summary>
    internal const ulong MonitorBase = 0xFFFF_8000_0000_0000;

    /// <summary>
    /// Virtual address of what the guest's kernel may touch: the last GiB of a hole that Linux leaves unused
    /// (Documentation/x86/x86_64/mm.rst), within reach of a 32-bit displacement from kernel text and modules.
    /// </summary>
    internal const ulong ExposedBase = 0xFFFF_FFFF_4000_0000;

    /// <summary>Virtual address of the arena. Its memory is sparse: implants lie where their jumps' bytes want them.</summary>
    internal const ulong ArenaBase = 0xFFFF_FFFF_7000_0000;

    /// <summary>
    /// Bytes of address space of the arena; behind it lie the windows on the guest's tables, the devices' page and the vCPU's pages.
    /// </summary>
    internal const ulong ArenaSize = 0x0FE0_0000;

    /// <summary>
    /// Virtual address of the first page of the guest's tables that implants may read: other ones on each vCPU.
    /// </summary>
    internal const ulong TableWindowsAddress = ArenaBase + ArenaSize;

    /// <summary>Pages there.</summary>
    internal const int TableWindows = 256;

    /// <summary>
    /// Virtual address, in the arena, of the breakpoint through which implants return to user code. The monitor knows it by the bits from
    /// <see cref="GateShift"/> up.
    /// </summary>
    internal const ulong UserGate = ArenaBase + 0x0C00_0000;

    /// <summary>As <see cref="UserGate"/>, of the breakpoint through which implants load CR3.</summary>
    internal const ulong RootGate = ArenaBase + 0x0D00_0000;

    /// <summary>Bits of a gate's address that the monitor does not look at.</summary>
    internal const int GateShift = 24;

    /// <summary>Virtual address of the page that each vCPU shares with the implants it runs: another page on each vCPU.</summary>
    internal const ulong VcpuPageAddress = 0xFFFF_FFFF_7FFF_F000;

    /// <summary>Virtual address of the page with the vCPU's answers to CPUID, which the guest may only read: another one on each vCPU.</summary>
    internal const ulong CpuidPageAddress = VcpuPageAddress - Paging.PageSize;

    /// <summary>Virtual address of the page that the devices share with implants: the same page on every vCPU.</summary>
    internal const ulong DevicePageAddress = CpuidPageAddress - Paging.PageSize;

    /// <summary>Offset in the monitor region of the GDT.</summary>
    internal const ulong GdtOffset = 0x0000;

    /// <summary>Offset of the IDT.</summary>
    internal const ulong IdtOffset = 0x1000;

    /// <summary>Offset of the exception stubs.</summary>
    internal const ulong StubsOffset = 0x2000;

    /// <summary>Offset of the page that SYSCALL enters.</summary>
    internal const ulong SyscallEntryOffset = 0x3000;

    /// <summary>Offset of the monitor's own page-directory pointer table.</summary>
    internal const ulong MonitorPdptOffset = 0x4000;

    /// <summary>Offset of the monitor's own page directory: 2 MiB pages.</summary>
    internal const ulong MonitorPdOffset = 0x5000;

    /// <summary>Offset of the breakpoint stub with the gates.</summary>
    internal const ulong BreakpointStubOffset = 0x6000;

    /// <summary>Offset of the page at <see cref="DevicePageAddress"/>.</summary>
    internal const ulong DevicePageOffset = 0x7000;

    /// <summary>Offset of the code that enters guest code, where CPL 0 is native.</summary>
    internal const ulong EntryStubOffset = 0x8000;

    /// <summary>Offset of the first vCPU's block.</summary>
    internal const ulong VcpuBlocksOffset = 0x1_0000;

    /// <summary>Bytes of a vCPU's block.</summary>
    internal const ulong VcpuBlockSize = 0x1_0000;

    /// <summary>Within a vCPU's block: its TSS.</summary>
    internal const ulong TssOffset = 0x0000;

    /// <summary>Within a vCPU's block: the end of its exception stack (it grows down from here).</summary>
    internal const ulong StackTopOffset = 0x4000;

    /// <summary>Within a vCPU's block: what its entry stub pops; what it may push in doing so lies below.</summary>
    internal const ulong EntryFrameOffset = 0x1000;

    /// <summary>Within a vCPU's block: page directory of <see cref="ExposedBase"/>.</summary>
    internal const ulong ExposedPdOffset = 0x4000;

    /// <summary>Within a vCPU's block: page table of the last 2 MiB there, with the vCPU's pages and the devices'.</summary>
    internal const ulong ExposedPtOffset = 0x5000;

    /// <summary>Within a vCPU's block: the page at <see cref="VcpuPageAddress"/>.</summary>
    internal const ulong VcpuPageOffset = 0x6000;

    /// <summary>Within a vCPU's block: the page at <see cref="CpuidPageAddress"/>.</summary>
    internal const ulong CpuidPageOffset = 0x7000;

    /// <summary>Within a vCPU's block: the code that changes shadow entries from inside the VM.</summary>
    internal const ulong ShadowProgramOffset = 0x8000;

    /// <summary>Bytes for that code.</summary>
    internal const int ShadowProgramSize = 0x8000;

    /// <summary>The most vCPUs a machine can have.</summary>
    internal const int MaximumVcpus = 16;

    /// <summary>Offset of the page tables of the arena, one for each of its 2 MiB.</summary>
    internal const ulong ArenaTablesOffset = 0x12_0000;

    /// <summary>Offset of the arena's memory.</summary>
    internal const ulong ArenaFramesOffset = 0x20_0000;

    /// <summary>Pages of memory that the arena has.</summary>
    internal const int ArenaFrames = 2048;

    /// <summary>Offset of the first pool of shadow tables.</summary>
    internal const ulong ShadowPoolsOffset = ArenaFramesOffset + ((ulong)ArenaFrames * Paging.PageSize);

    /// <summary>Shadow tables a vCPU has.</summary>
    internal const int ShadowTablesPerVcpu = 2048;

    /// <summary>Bytes of a vCPU's pool.</summary>
    internal const ulong ShadowPoolSize = (ulong)ShadowTablesPerVcpu * Paging.PageSize;

    /// <summary>The port that a vector's stub writes to is the vector itself; this one ends a shadow program.</summary>
    internal const byte ShadowProgramDonePort = 0x40;

    /// <summary>The port that the SYSCALL entry writes to, on a host where SYSCALL enters CPL 0.</summary>
    internal const byte SyscallPort = 0x41;

    /// <summary>Bytes of the monitor region for a number of vCPUs, rounded to its 2 MiB mappings.</summary>
    internal static ulong MonitorSize(int vcpus) => ShadowPoolsOffset + ((ulong)vcpus * ShadowPoolSize);

    /// <summary>Offset of a vCPU's block.</summary>
    internal static ulong VcpuBlock(int vcpu) => VcpuBlocksOffset + ((ulong)vcpu * VcpuBlockSize);

    /// <summary>Offset of a vCPU's pool of shadow tables.</summary>
    internal static ulong ShadowPool(int vcpu) => ShadowPoolsOffset + ((ulong)vcpu * ShadowPoolSize);
}
