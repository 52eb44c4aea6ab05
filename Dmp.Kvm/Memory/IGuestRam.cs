namespace Dmp.Kvm.Memory;

/// <summary>A contiguous range of guest RAM.</summary>
/// <param name="Start">First byte.</param>
/// <param name="Length">Bytes.</param>
public readonly record struct GuestRamRange(GuestPhysicalAddress Start, ulong Length);

/// <summary>Guest RAM as loaders and tables builders see it.</summary>
public interface IGuestRam
{
    /// <summary>Bytes of RAM in all ranges.</summary>
    ulong Size { get; }

    /// <summary>The ranges, ascending: below 3 GiB from 0, the rest from 4 GiB.</summary>
    IReadOnlyList<GuestRamRange> Ranges { get; }

    /// <summary>The bytes of a part of RAM.</summary>
    /// <exception cref="GuestMemoryException">Not all of it is RAM.</exception>
    Span<byte> Slice(GuestPhysicalAddress address, int length);
}
