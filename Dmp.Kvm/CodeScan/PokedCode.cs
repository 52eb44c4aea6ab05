using Iced.Intel;

namespace Dmp.Kvm.CodeScan;

/// <summary>
/// Where the guest is changing an instruction behind an INT3. Linux (text_poke_bp) writes an INT3 onto the first byte, then the rest of the
/// new instruction, then its first byte; a probe's INT3 stays. What stands behind the INT3 is then the rest of the old instruction, the
/// rest of the new one, or code again (an optimized probe's jump gave back what it covered): only what the page held before tells where the
/// next instruction begins. Pure.
/// </summary>
internal static class PokedCode
{
    private const byte Breakpoint = 0xCC;
    private const int LongestInstruction = 15;

    /// <summary>The most that one change covers: a near jump and the rest of the instruction that its end lies in.</summary>
    private const int LongestChange = 5 + LongestInstruction;

    /// <summary>Bytes around a change that must be what they were, for the rest of the page to be the same code.</summary>
    private const int Context = 8;

    /// <summary>
    /// Where code goes on for certain behind an INT3 that was none before: the first instruction of the old code from which on the bytes
    /// are the same, when those before the INT3 are the same too.
    /// </summary>
    /// <param name="known">What the page held before the change.</param>
    /// <param name="now">What it holds; of the same length.</param>
    /// <param name="at">Offset of the byte.</param>
    /// <returns>The offset where code goes on, at most the length; 0 when the byte is no such INT3.</returns>
    internal static int ResumesAt(ReadOnlySpan<byte> known, ReadOnlySpan<byte> now, int at)
    {
        if (now[at] != Breakpoint || known[at] == Breakpoint)
        {
            return 0;
        }

        int lead = Math.Min(Context, at);
        if (!now.Slice(at - lead, lead).SequenceEqual(known.Slice(at - lead, lead)))
        {
            return 0;
        }

        int available = Math.Min(LongestChange + LongestInstruction, known.Length - at);
        Decoder old = Decoder.Create(64, known.Slice(at, available).ToArray());
        for (int end = at; end - at < LongestChange;)
        {
            old.Decode(out Instruction instruction);
            if (instruction.IsInvalid)
            {
                return 0;
            }

            end += instruction.Length;
            int trail = Math.Min(Context, known.Length - end);
            if (lead + trail >= Context && now.Slice(end, trail).SequenceEqual(known.Slice(end, trail)))
            {
                return end;
            }
        }

        return 0;
    }

    /// <summary>Updates what a page is known to have held: where an INT3 stands on a change, it stays as it was before that.</summary>
    /// <param name="known">What is known; receives what it is from now on.</param>
    /// <param name="now">What the page holds; of the same length.</param>
    internal static void Remember(Span<byte> known, ReadOnlySpan<byte> now)
    {
        Span<byte> updated = stackalloc byte[known.Length];
        now.CopyTo(updated);
        for (int at = now.IndexOf(Breakpoint); at >= 0;)
        {
            int end = ResumesAt(known, now, at);
            if (end > 0)
            {
                known[at..end].CopyTo(updated[at..]);
            }

            int from = Math.Max(end, at + 1);
            int next = now[from..].IndexOf(Breakpoint);
            at = next < 0 ? -1 : from + next;
        }

        updated.CopyTo(known);
    }
}
