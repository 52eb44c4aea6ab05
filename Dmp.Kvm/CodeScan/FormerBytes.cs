namespace Dmp.Kvm.CodeScan;

/// <summary>
/// What of ours has stood in a page of the kernel's own text, and instead of which bytes. A guest that reads its text sees ours, and may put
/// what it read back later, when something else stands there or nothing: Linux' kprobes keep the first byte of an instruction and the four
/// behind it, each read at a time of its own, and restore them when the probe goes. All such bytes mean the guest's own. A page of text is
/// never used for other code, so the place alone tells them. Under the lock of its owner.
/// </summary>
internal sealed class FormerBytes
{
    private readonly Dictionary<int, List<ReplacedBytes>> places = [];

    /// <summary>Notes bytes that go, or are about to.</summary>
    /// <param name="offset">Offset of the first.</param>
    /// <param name="ours">What stood there.</param>
    /// <param name="meant">The guest's own bytes.</param>
    internal void Note(int offset, ReadOnlySpan<byte> ours, ReadOnlySpan<byte> meant)
    {
        if (!places.TryGetValue(offset, out List<ReplacedBytes>? there))
        {
            places.Add(offset, there = []);
        }

        foreach (ReplacedBytes placed in there)
        {
            if (placed.Are(ours, meant))
            {
                return;
            }
        }

        there.Add(new ReplacedBytes(ours.ToArray(), meant.ToArray()));
    }

    /// <summary>Gives a page that is not scanned the guest's own bytes where it has ours, all or some of them.</summary>
    /// <param name="page">The page.</param>
    /// <param name="before">What it held when it was given back the last time.</param>
    internal void Repair(Span<byte> page, ReadOnlySpan<byte> before)
    {
        foreach ((int offset, List<ReplacedBytes> there) in places)
        {
            // Fewer bytes than a displacement's may as well be a part of one, of a jump that the guest has put there since.
            bool mayBeInsideJump = offset > 0 && page[offset - 1] != before[offset - 1];
            foreach (ReplacedBytes placed in there)
            {
                if ((placed.Ours.Length >= KnownCode.NearLength || !mayBeInsideJump) && TryRepair(page.Slice(offset, placed.Ours.Length), placed))
                {
                    break;
                }
            }
        }
    }

    /// <summary>Finds the guest's byte where a trap has stood.</summary>
    internal bool TryFindTrapped(int offset, out byte meant)
    {
        meant = 0;
        if (!places.TryGetValue(offset, out List<ReplacedBytes>? there))
        {
            return false;
        }

        foreach (ReplacedBytes placed in there)
        {
            if (placed.Ours is [CodePages.Trap])
            {
                meant = placed.Meant[0];
                return true;
            }
        }

        return false;
    }

    private static bool TryRepair(Span<byte> bytes, ReplacedBytes placed)
    {
        // A breakpoint is the guest's; what stands behind it may be ours all the same.
        int first = bytes[0] == KnownCode.Breakpoint && placed.Ours[0] != KnownCode.Breakpoint ? 1 : 0;
        Span<byte> there = bytes[first..];
        ReadOnlySpan<byte> meant = placed.Meant.AsSpan(first);
        if (there.SequenceEqual(meant) || !ReplacedBytes.IsMixture(there, meant, placed.Ours.AsSpan(first)))
        {
            return false;
        }

        meant.CopyTo(there);
        return true;
    }
}
