using Dmp.Kvm.Boot;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.Boot;

/// <summary>Guest RAM in an array, one range from 0; optionally a second one at 4 GiB that only exists on paper.</summary>
internal sealed class ArrayRam : IGuestRam
{
    private readonly byte[] _bytes;

    public ArrayRam(int mebibytes, ulong above4GiB = 0)
    {
        _bytes = new byte[mebibytes << 20];
        Ranges = above4GiB == 0
            ? [new(new(0), (ulong)_bytes.Length)]
            : [new(new(0), (ulong)_bytes.Length), new(new(BootLayout.IdentityMapped), above4GiB)];
    }

    public ulong Size => (ulong)_bytes.Length;

    public IReadOnlyList<GuestRamRange> Ranges { get; }

    public Span<byte> Slice(GuestPhysicalAddress address, int length) =>
        address.Value <= Size && (ulong)length <= Size - address.Value
            ? _bytes.AsSpan((int)address.Value, length)
            : throw new GuestMemoryException("access", address, (ulong)length, Size);
}
