using System.Buffers.Binary;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.CodeScan;

/// <summary>
/// Recognizes code that the guest has copied from pages where some bytes are ours, and knows the bytes that the guest meant. A copy is
/// known by the sixteen bytes from the first replaced one on, or by that one with the sixteen before it; a shorter one is not recognized.
/// What stands behind a copy that ends between replaced bytes is not touched.
/// Under the lock of its owner.
/// </summary>
internal sealed class CodeCopies
{
    /// <summary>Bytes on either side of a replaced one that it is known by.</summary>
    internal const int ContextLength = 2 * Half;

    private const int Half = sizeof(ulong);

    private readonly Dictionary<(ulong First, ulong Second), Replaced> following = [];
    private readonly Dictionary<(ulong First, ulong Second, byte Replaced), Replaced> preceding = [];
    private readonly HashSet<byte> firstBytes = [];
    private readonly byte[] copy = new byte[Paging.PageSize];

    /// <summary>Notes bytes that were replaced.</summary>
    /// <param name="page">The page as it runs now.</param>
    /// <param name="offset">Offset of the first replaced byte.</param>
    /// <param name="length">How many were replaced.</param>
    /// <param name="original">The guest's byte at an offset.</param>
    internal void Note(ReadOnlySpan<byte> page, int offset, int length, Func<int, byte> original)
    {
        ReadOnlySpan<byte> ours = page.Slice(offset, length);
        bool isFollowed = offset + ContextLength <= page.Length;
        bool isPreceded = offset >= ContextLength;

        // A patch that comes and goes looks the same each time, and the world stands meanwhile.
        if ((!isFollowed || IsKnown(following.GetValueOrDefault(Context(page, offset)), ours, offset, original))
            && (!isPreceded || IsKnown(preceding.GetValueOrDefault(Before(page, offset)), ours, offset, original)))
        {
            return;
        }

        byte[] meant = new byte[length];
        for (int index = 0; index < length; index++)
        {
            meant[index] = original(offset + index);
        }

        Replaced replaced = new(ours.ToArray(), meant);
        _ = firstBytes.Add(page[offset]);
        if (isFollowed)
        {
            following[Context(page, offset)] = replaced;
        }

        if (isPreceded)
        {
            preceding[Before(page, offset)] = replaced;
        }
    }

    private static bool IsKnown(Replaced? known, ReadOnlySpan<byte> ours, int offset, Func<int, byte> original)
    {
        if (known is null || !ours.SequenceEqual(known.Ours))
        {
            return false;
        }

        for (int index = 0; index < ours.Length; index++)
        {
            if (known.Meant[index] != original(offset + index))
            {
                return false;
            }
        }

        return true;
    }

    /// <summary>Gives a page that is not scanned the bytes that the guest meant.</summary>
    internal void Repair(Span<byte> page)
    {
        // What is repaired first would hide what comes next.
        page.CopyTo(copy);
        for (int offset = 0; offset < copy.Length; offset++)
        {
            if (firstBytes.Contains(copy[offset]) && Find(offset) is { } replaced)
            {
                int length = replaced.Ours.AsSpan().CommonPrefixLength(copy.AsSpan(offset));
                replaced.Meant.AsSpan(0, length).CopyTo(page[offset..]);
                offset += length - 1;
            }
        }
    }

    private Replaced? Find(int offset)
    {
        if (offset + ContextLength <= copy.Length && following.TryGetValue(Context(copy, offset), out Replaced? replaced))
        {
            return replaced;
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

    private sealed record Replaced(byte[] Ours, byte[] Meant);
}
