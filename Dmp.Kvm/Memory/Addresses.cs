using System.Globalization;

namespace Dmp.Kvm.Memory;

/// <summary>A guest physical address (GPA): what the guest believes is physical.</summary>
/// <param name="Value">The address in bytes.</param>
public readonly record struct GuestPhysicalAddress(ulong Value)
{
    /// <summary>The guest frame number (GFN): the address in units of 4 KiB pages.</summary>
    public ulong Frame => Value >> Paging.PageShift;

    /// <summary>The address <paramref name="bytes"/> further on.</summary>
    public GuestPhysicalAddress Plus(ulong bytes) => new(Value + bytes);

    /// <inheritdoc/>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"gpa 0x{Value:x}");
}

/// <summary>A guest virtual (linear) address.</summary>
/// <param name="Value">The address in bytes.</param>
public readonly record struct GuestVirtualAddress(ulong Value)
{
    /// <inheritdoc/>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"gva 0x{Value:x}");
}

/// <summary>
/// A machine address: KVM's guest-physical space, where guest RAM, the monitor and the shadow tables live.
/// </summary>
/// <param name="Value">The address in bytes.</param>
public readonly record struct MachineAddress(ulong Value)
{
    /// <inheritdoc/>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"ma 0x{Value:x}");
}
