using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>
/// A loaded guest, and how its first vCPU begins: 64-bit mode, paging on, interrupts off, as the 64-bit boot protocol has it
/// (Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"). Addresses are identity-mapped: physical equals virtual.
/// </summary>
public sealed record BootState
{
    /// <summary>First instruction (RIP).</summary>
    public required GuestPhysicalAddress Entry { get; init; }

    /// <summary>boot_params (RSI).</summary>
    public required GuestPhysicalAddress BootParameters { get; init; }

    /// <summary>The PML4 (CR3).</summary>
    public required GuestPhysicalAddress PageTableRoot { get; init; }

    /// <summary>First stack pointer (RSP).</summary>
    public required GuestPhysicalAddress StackTop { get; init; }

    /// <summary>Base of the GDT.</summary>
    public required GuestPhysicalAddress GdtBase { get; init; }

    /// <summary>Limit of the GDT: its size in bytes less one.</summary>
    public required ushort GdtLimit { get; init; }

    /// <summary>CS: a flat 64-bit code segment of ring 0.</summary>
    public ushort CodeSelector { get; init; } = BootLayout.CodeSelector;

    /// <summary>DS, ES and SS: a flat data segment.</summary>
    public ushort DataSelector { get; init; } = BootLayout.DataSelector;

    /// <summary>Where the kernel's lowest segment lies.</summary>
    public required GuestPhysicalAddress KernelStart { get; init; }

    /// <summary>Bytes from <see cref="KernelStart"/> to the end of the highest segment, bss included.</summary>
    public required ulong KernelLength { get; init; }

    /// <summary>Where the kernel is linked to see <see cref="KernelStart"/>: the base of its text.</summary>
    public required GuestVirtualAddress KernelVirtualBase { get; init; }

    /// <summary>Identity of the kernel: SHA-256 of its unpacked image, in hexadecimal.</summary>
    public required string KernelId { get; init; }

    /// <summary>The GNU build id in hexadecimal; the beginning of <see cref="KernelId"/> when the kernel has none.</summary>
    public required string BuildId { get; init; }
}
