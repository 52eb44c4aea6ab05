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

    private readonly Dictionary<(ulong First, ulong Second), ReplacedBytes> following = [];
    private readonly Dictionary<(ulong First, ulong Second, byte Replaced), ReplacedBytes> preceding = [];
    private readonly HashSet<byte> firstBytes = [];
    private readonly byte[] copy = new byte[Paging.PageSize];

    /// <summary>Notes bytes that were replaced.</summary>
    /// <param name="page">The page as it runs now.</param>
    /// <param name="offset">Offset of the first replaced byte.</param>
    /// <param name="meant">The guest's bytes, as many as were replaced.</param>
    internal void Note(ReadOnlySpan<byte> page, int offset, ReadOnlySpan<byte> meant)
    {
        ReadOnlySpan<byte> ours = page.Slice(offset, meant.Length);
        bool isFollowed = offset + ContextLength <= page.Length;
        bool isPreceded = offset >= ContextLength;

        // A patch that comes and goes looks the same each time, and the world stands meanwhile.
        if ((!isFollowed || following.GetValueOrDefault(Context(page, offset))?.Are(ours, meant) == true)
            && (!isPreceded || preceding.GetValueOrDefault(Before(page, offset))?.Are(ours, meant) == true))
        {
            return;
        }

        ReplacedBytes replaced = new(ours.ToArray(), meant.ToArray());
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

    private ReplacedBytes? Find(int offset)
    {
        if (offset + ContextLength <= copy.Length && following.TryGetValue(Context(copy, offset), out ReplacedBytes? replaced))
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
}
