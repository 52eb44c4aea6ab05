namespace Dmp.Kvm.CodeScan;

/// <summary>Bytes of the guest's that ours stood in for. Immutable.</summary>
/// <param name="Ours">What stood there.</param>
/// <param name="Meant">The guest's own, as many.</param>
internal sealed record ReplacedBytes(byte[] Ours, byte[] Meant)
{
    /// <summary>Whether these are the bytes.</summary>
    internal bool Are(ReadOnlySpan<byte> ours, ReadOnlySpan<byte> meant) => ours.SequenceEqual(Ours) && meant.SequenceEqual(Meant);

    /// <summary>Whether each byte is that of the one or of the other, all three of the same length.</summary>
    internal static bool IsMixture(ReadOnlySpan<byte> bytes, ReadOnlySpan<byte> one, ReadOnlySpan<byte> other)
    {
        for (int index = 0; index < bytes.Length; index++)
        {
            if (bytes[index] != one[index] && bytes[index] != other[index])
            {
                return false;
            }
        }

        return true;
    }
}
