using System.Buffers.Binary;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.CodeScan;

/// <summary>
/// Recognizes code that the guest has copied from pages where some bytes are ours, and knows the bytes that the guest meant. A copy is
/// known by the sixteen bytes from the first replaced one on, or by that one with the sixteen before it; a shorter one is not recognized.
/// Under the lock of its owner.
/// </summary>
internal sealed class CodeCopies
{
    private const int Half = sizeof(ulong);
    private const int ContextLength = 2 * Half;

    private readonly Dictionary<(ulong First, ulong Second), byte[]> following = [];
    private readonly Dictionary<(ulong First, ulong Second, byte Replaced), byte[]> preceding = [];
    private readonly HashSet<byte> firstBytes = [];
    private readonly byte[] copy = new byte[Paging.PageSize];

    /// <summary>Notes bytes that were replaced.</summary>
    /// <param name="page">The page as it runs now.</param>
    /// <param name="offset">Offset of the first replaced byte.</param>
    /// <param name="length">How many were replaced.</param>
    /// <param name="original">The guest's byte at an offset.</param>
    internal void Note(ReadOnlySpan<byte> page, int offset, int length, Func<int, byte> original)
    {
        byte[] meant = new byte[length];
        for (int index = 0; index < length; index++)
        {
            meant[index] = original(offset + index);
        }

        _ = firstBytes.Add(page[offset]);
        if (offset + ContextLength <= page.Length)
        {
            following[Context(page, offset)] = meant;
        }

        if (offset >= ContextLength)
        {
            preceding[Before(page, offset)] = meant;
        }
    }

    /// <summary>Gives a page that is not scanned the bytes that the guest meant.</summary>
    internal void Repair(Span<byte> page)
    {
        // What is repaired first would hide what comes next.
        page.CopyTo(copy);
        for (int offset = 0; offset < copy.Length; offset++)
        {
            if (firstBytes.Contains(copy[offset]) && Find(offset) is { } meant && offset + meant.Length <= page.Length)
            {
                meant.CopyTo(page[offset..]);
                offset += meant.Length - 1;
            }
        }
    }

    private byte[]? Find(int offset)
    {
        if (offset + ContextLength <= copy.Length && following.TryGetValue(Context(copy, offset), out byte[]? meant))
        {
            return meant;
        }

        return offset >= ContextLength ? preceding.GetValueOrDefault(Before(copy, offset)) : null;
    }

    private static (ulong First, ulong Second) Context(ReadOnlySpan<byte> page, int offset) => (
        BinaryPrimitives.ReadUInt64LittleEndian(page[offset..]),
        BinaryPrimitives.ReadUInt64LittleEndian(page[(offset + Half)..]));

    private static (ulong First, ulong Second, byte Replaced) Before(ReadOnlySpan<byte> page, int offset)
    {
        (ulong first, ulong second) = Context(page, offset - ContextLength);
        return (first, second, page[offset]);
    }
}
