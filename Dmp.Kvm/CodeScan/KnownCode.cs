using System.Collections;

namespace Dmp.Kvm.CodeScan;

/// <summary>
/// What a page of code held before the guest began to change it, and where the instructions of that began. Linux (text_poke_bp) changes an
/// instruction in three steps: an INT3 onto the first byte, then the rest, then the first byte; it takes many places through each step
/// together. A probe's INT3 stays. An optimized probe's near jump takes the place of several instructions, of which the last may keep its
/// end behind the jump, and gives them back in two steps, the last bytes first. A look at the page alone cannot tell which of that stands
/// behind an INT3: with what was there before, it can. Immutable.
/// </summary>
internal sealed class KnownCode
{
    /// <summary>INT3.</summary>
    internal const byte Breakpoint = 0xCC;

    /// <summary>Bytes of a near call or jump.</summary>
    internal const int NearLength = 5;

    private const byte NearCall = 0xE8;
    private const byte NearJump = 0xE9;
    private const byte ShortJump = 0xEB;
    private const int ShortLength = 2;
    private const int LongestInstruction = 15;

    /// <summary>Bytes on either side of a change in which most instructions must be what they were, for the page to be the same code there.</summary>
    private const int Around = 64;

    private readonly byte[] bytes;
    private readonly BitArray starts;

    /// <summary>Where the instruction ends that reaches beyond the page, or the page.</summary>
    private readonly int end;

    /// <summary>A page as it is.</summary>
    /// <param name="page">Its bytes.</param>
    /// <param name="starts">Where a sweep found its instructions begin.</param>
    /// <param name="spill">Bytes of the last instruction beyond the page.</param>
    internal KnownCode(ReadOnlySpan<byte> page, BitArray starts, int spill)
        : this(page.ToArray(), new BitArray(starts), page.Length + spill)
    {
    }

    private KnownCode(byte[] bytes, BitArray starts, int end)
    {
        this.bytes = bytes;
        this.starts = starts;
        this.end = end;
    }

    /// <summary>What the page held, where a change stands what was there before it.</summary>
    internal ReadOnlySpan<byte> Bytes => bytes;

    /// <summary>What is known when the page has been swept again: where a change stands, still what was there before it.</summary>
    /// <param name="page">The page's bytes.</param>
    /// <param name="starts">Where a sweep that heeded the changes found its instructions begin.</param>
    /// <param name="spill">Bytes of the last instruction beyond the page.</param>
    internal KnownCode After(ReadOnlySpan<byte> page, BitArray starts, int spill)
    {
        byte[] held = page.ToArray();
        BitArray begun = new(starts);
        List<(int Start, int End)> changes = [];
        FindChanges(page, changes);
        foreach ((int start, int end) in changes)
        {
            for (int at = start; at < Math.Min(end, held.Length); at++)
            {
                held[at] = bytes[at];
                begun[at] = this.starts[at];
            }
        }

        return new KnownCode(held, begun, page.Length + spill);
    }

    /// <summary>
    /// Finds the INT3s and the jumps of optimized probes that the guest put onto instructions, each with the bytes behind it that are no
    /// code for as long as it stands there.
    /// </summary>
    /// <param name="page">What the page holds; of the same length.</param>
    /// <param name="changes">Receives where they begin and where code goes on, in order; cleared first. The last may end beyond the page.</param>
    internal void FindChanges(ReadOnlySpan<byte> page, List<(int Start, int End)> changes)
    {
        changes.Clear();
        for (int at = NextDifference(page, 0); at < bytes.Length;)
        {
            int start = StartOf(at);
            int goesOn = start < 0 ? 0 : EndOfChange(page, start);
            if (goesOn > 0)
            {
                changes.Add((start, goesOn));
            }

            at = NextDifference(page, Math.Max(goesOn, NextStart(at + 1)));
        }
    }

    /// <summary>Where code goes on behind an instruction that is different now; 0 when what stands there is code as any other.</summary>
    private int EndOfChange(ReadOnlySpan<byte> page, int start)
    {
        int next = NextStart(start + 1);
        int covered = NextStart(start + NearLength);
        bool mayBeJump = HasSame(page, start + NearLength, covered);
        if (bytes[start] == Breakpoint || next - start > LongestInstruction || !IsSameAround(page, start))
        {
            return 0;
        }

        return page[start] switch
        {
            Breakpoint => mayBeJump && IsOneChange(page, start, next) ? covered : next,
            NearJump when mayBeJump && !(next == start + NearLength && IsSwitch(bytes, start, next)) => covered,
            _ => 0,
        };
    }

    /// <summary>
    /// Whether the bytes of a near jump are one change: not each instruction that begins in them is as it was, or is one that the guest may
    /// have changed by itself. A jump that begins in them shows behind them.
    /// </summary>
    private bool IsOneChange(ReadOnlySpan<byte> page, int start, int next)
    {
        if (!HasSame(page, start + 1, next) && !IsSwitch(bytes, start, next))
        {
            return true;
        }

        for (int at = next; at < start + NearLength; at = next)
        {
            next = NextStart(at + 1);
            bool isSame = HasSame(page, at, next);
            if (!isSame && (page[at] is Breakpoint or NearJump) && !HasSame(page, start + NearLength, at + NearLength))
            {
                return false;
            }

            bool hasChangedAlone = isSame
                || (page[at] == Breakpoint && HasSame(page, at + 1, next))
                || (IsSwitch(bytes, at, next) && (page[at] == Breakpoint || IsSwitch(page, at, next)));
            if (!hasChangedAlone)
            {
                return true;
            }
        }

        return false;
    }

    /// <summary>Whether an instruction is as it was, or begins like a change.</summary>
    private bool MayBegin(ReadOnlySpan<byte> page, int at)
    {
        int next = NextStart(at + 1);
        return HasSame(page, at, next) || page[at] is Breakpoint or NearJump || IsSwitch(page, at, next);
    }

    /// <summary>
    /// Whether an instruction is a branch or a no-operation that the guest switches to one another (Linux: jump labels, calls of function
    /// tracing, static calls).
    /// </summary>
    private static bool IsSwitch(ReadOnlySpan<byte> code, int at, int next) => (next - at) switch
    {
        NearLength => code[at..] is [NearCall or NearJump, ..] or [0x0F, 0x1F, 0x44, 0x00, 0x00, ..],
        ShortLength => code[at..] is [ShortJump, ..] or [0x66, 0x90, ..],
        _ => false,
    };

    /// <summary>
    /// Whether the code around is the old one. An INT3 says that only by what stands behind it, and branches say nothing: other code has
    /// these too.
    /// </summary>
    private bool IsSameAround(ReadOnlySpan<byte> page, int start)
    {
        int same = 0;
        int different = 0;
        for (int at = NextStart(Math.Max(start - Around, 0)); at < Math.Min(start + Around, bytes.Length);)
        {
            int next = NextStart(at + 1);
            if (HasSame(page, at, next) || (page[at] == Breakpoint && next - at > 1 && HasSame(page, at + 1, next)))
            {
                same++;
            }
            else if (MayBegin(page, at))
            {
                next = NextStart(at + NearLength);
            }
            else
            {
                different++;
            }

            at = next;
        }

        return same > different;
    }

    /// <summary>Whether bytes are what they were, as far as they lie in the page.</summary>
    private bool HasSame(ReadOnlySpan<byte> page, int from, int to)
    {
        int last = Math.Min(to, bytes.Length);
        return from >= last || page[from..last].SequenceEqual(bytes.AsSpan(from..last));
    }

    private int NextDifference(ReadOnlySpan<byte> page, int from) =>
        from >= bytes.Length ? bytes.Length : from + MemoryExtensions.CommonPrefixLength(bytes.AsSpan(from), page[from..]);

    /// <summary>Where the instruction begins that a byte is a part of; -1 when it is one that began before the page.</summary>
    private int StartOf(int at)
    {
        while (at >= 0 && !starts[at])
        {
            at--;
        }

        return at;
    }

    /// <summary>The first instruction that begins at an offset or behind it; the end of the last one when there is none.</summary>
    private int NextStart(int from)
    {
        while (from < bytes.Length && !starts[from])
        {
            from++;
        }

        return from < bytes.Length ? from : Math.Max(from, end);
    }
}
