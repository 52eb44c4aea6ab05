using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>The mode in which a kernel is entered.</summary>
public enum BootMode
{
    /// <summary>64-bit mode, paging on.</summary>
    LongMode,

    /// <summary>32-bit protected mode, paging off.</summary>
    ProtectedMode,
}

/// <summary>
/// A loaded guest, and how its first vCPU begins: interrupts off, flat segments, and either as the 64-bit boot protocol has it (Linux
/// Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"), where addresses are identity-mapped, or in 32-bit mode.
/// </summary>
public sealed record BootState
{
    /// <summary>In which mode.</summary>
    public BootMode Mode { get; init; }

    /// <summary>
    /// Whether 64-bit code comes first that unpacks the kernel. It has data among its code, and runs natively: until the kernel runs at its
    /// own virtual addresses.
    /// </summary>
    public bool UnpacksItself { get; init; }

    /// <summary>Whether local APICs begin in xAPIC mode, as on a board. Linux, by its own boot protocol, is given x2APIC at once.</summary>
    public bool BeginsInXApicMode { get; init; }

    /// <summary>EAX in 32-bit mode.</summary>
    public uint Eax { get; init; }

    /// <summary>EBX in 32-bit mode.</summary>
    public uint Ebx { get; init; }

    /// <summary>ESI in 32-bit mode.</summary>
    public uint Esi { get; init; }

    /// <summary>First instruction (RIP).</summary>
    public required GuestPhysicalAddress Entry { get; init; }

    /// <summary>boot_params (RSI), or the multiboot information.</summary>
    public required GuestPhysicalAddress BootParameters { get; init; }

    /// <summary>The PML4 (CR3); nothing in 32-bit mode.</summary>
    public GuestPhysicalAddress PageTableRoot { get; init; }

    /// <summary>First stack pointer (RSP).</summary>
    public required GuestPhysicalAddress StackTop { get; init; }

    /// <summary>Base of the GDT.</summary>
    public required GuestPhysicalAddress GdtBase { get; init; }

    /// <summary>Limit of the GDT: its size in bytes less one.</summary>
    public required ushort GdtLimit { get; init; }

    /// <summary>CS: a flat code segment of ring 0.</summary>
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
