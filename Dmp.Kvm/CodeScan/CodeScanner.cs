using System.Collections;
using Iced.Intel;

namespace Dmp.Kvm.CodeScan;

/// <summary>What a page's bytes are known to hold before a scan.</summary>
/// <param name="PageStart">Where the page begins in the window.</param>
/// <param name="PageLength">Bytes of the page in the window.</param>
/// <param name="Boundary">
/// Offset in the window where an instruction begins for certain: RIP of the fetch. It may lie before the page, when the instruction
/// reaches into it.
/// </param>
/// <param name="SureStart">Offset in the window where another instruction begins for certain (how the page before ended), or -1.</param>
internal readonly record struct ScanRequest(int PageStart, int PageLength, int Boundary, int SureStart);

/// <summary>An instruction that a sweep went through.</summary>
/// <param name="Offset">Where it begins.</param>
/// <param name="Length">Its length in bytes.</param>
/// <param name="Silent">Whether it must not run as it is.</param>
internal readonly record struct SweptInstruction(int Offset, int Length, bool Silent);

/// <summary>
/// Finds the silent sensitive instructions of a page of code by linear sweep. From the fetched address on the instruction boundaries
/// are certain. Before it they are inferred: x86 code resynchronizes within a few instructions, so sweeps from several starting points
/// before the page agree; an instruction counts when most of the sweeps that arrive exactly at the fetched address went through it.
/// What the guest is changing, and where code goes on behind it, tells what the page held before (<see cref="KnownCode"/>). Pure.
/// </summary>
internal sealed class CodeScanner
{
    private const int CandidateStarts = 16;
    private const int LongestInstruction = 15;
    private const int SilentBit = 0x80;

    /// <summary>The longest instruction and a near jump back.</summary>
    private const int LongestSlot = LongestInstruction + 5;

    private readonly WindowReader reader = new();
    private readonly Decoder decoder;

    /// <summary>Per byte of the page, where the code behind the change that it lies in goes on, in the window; 0 outside of changes.</summary>
    private readonly int[] resume = new int[Memory.Paging.PageSize];
    private readonly List<(int Start, int End)> changes = [];
    private int pageStart;

    /// <summary>Per byte of the window, the length of the instruction that begins there, with a bit for silent ones; 0 before it is decoded.
    /// The sweeps before a boundary fall into step, and go through the same instructions from there.</summary>
    private byte[] decoded = [];

    internal CodeScanner() => decoder = Decoder.Create(64, reader);

    /// <summary>Where the last scan found the page's instructions begin.</summary>
    internal BitArray Starts { get; } = new(Memory.Paging.PageSize);

    /// <summary>Scans a page.</summary>
    /// <param name="window">Some bytes before the page, the page, and some after it.</param>
    /// <param name="request">What is known.</param>
    /// <param name="found">Receives the offsets, relative to the page, where silent instructions begin; cleared first.</param>
    /// <param name="known">What the whole page held before the guest changed it; null when it never ran before.</param>
    /// <returns>How many bytes of the last instruction lie beyond the page.</returns>
    internal int Scan(ReadOnlySpan<byte> window, in ScanRequest request, List<int> found, KnownCode? known = null)
    {
        found.Clear();
        Starts.SetAll(false);
        reader.Load(window);
        if (decoded.Length < window.Length)
        {
            decoded = new byte[window.Length];
        }

        decoded.AsSpan(0, window.Length).Clear();
        pageStart = request.PageStart;
        changes.Clear();
        if (known is not null)
        {
            known.FindChanges(window.Slice(request.PageStart, request.PageLength), changes);
            NoteChanges(request.Boundary);
        }

        if (request.Boundary > request.PageStart)
        {
            ScanBefore(request, found);
        }

        return ScanAfter(request, found);
    }

    /// <summary>
    /// Whether a page is one of slots: short pieces of code that the guest writes one by one, with gaps that were never written between
    /// them (Linux: the out-of-line copies of kprobes). A sweep loses the boundaries in a gap. A longer piece alone, with zeros behind it
    /// and something else behind them, is a function with its data (Linux: a trampoline of function tracing).
    /// </summary>
    /// <param name="page">The whole page.</param>
    internal bool HasSlots(ReadOnlySpan<byte> page)
    {
        int used = page.Length - TrailingZeros(page);
        reader.Load(page);
        changes.Clear();
        int pieces = 0;
        for (int at = 0, start = 0; at < used - 1;)
        {
            reader.Position = at;
            decoder.Decode(out Instruction instruction);
            at += instruction.IsInvalid ? 1 : instruction.Length;
            if (!EndsFlow(instruction) || at + 1 >= used || page[at] != 0 || page[at + 1] != 0)
            {
                continue;
            }

            pieces++;
            if (pieces > 1 || at - start <= LongestSlot)
            {
                return true;
            }

            at += page[at..].IndexOfAnyExcept((byte)0);
            start = at;
        }

        return false;
    }

    /// <summary>Sweeps from an instruction that is certain to where the flow ends, or to bytes that are swept already.</summary>
    /// <param name="page">The whole page.</param>
    /// <param name="offset">Where the instruction begins.</param>
    /// <param name="stop">Says whether an offset has been swept.</param>
    /// <param name="found">Receives the instructions; cleared first.</param>
    internal void Follow(ReadOnlySpan<byte> page, int offset, Predicate<int> stop, List<SweptInstruction> found)
    {
        found.Clear();
        reader.Load(page);
        for (int at = offset; at < page.Length && !stop(at);)
        {
            reader.Position = at;
            decoder.Decode(out Instruction instruction);
            int length = instruction.IsInvalid ? 1 : instruction.Length;
            found.Add(new SweptInstruction(at, Math.Min(length, page.Length - at), SilentInstructions.IsSilent(instruction)));
            if (instruction.IsInvalid || EndsFlow(instruction))
            {
                return;
            }

            at += length;
        }
    }

    private static bool EndsFlow(in Instruction instruction) => instruction.FlowControl
        is FlowControl.UnconditionalBranch or FlowControl.IndirectBranch or FlowControl.Return or FlowControl.Interrupt
        or FlowControl.Exception;

    private static int TrailingZeros(ReadOnlySpan<byte> page) => page.Length - 1 - page.LastIndexOfAnyExcept((byte)0);

    private int ScanAfter(in ScanRequest request, List<int> found)
    {
        int end = request.PageStart + request.PageLength;
        int at = request.Boundary;
        while (at < end)
        {
            at += Pass(at, found);
        }

        return at - end;
    }

    private void ScanBefore(in ScanRequest request, List<int> found)
    {
        if (request.SureStart >= 0 && request.SureStart <= request.Boundary
            && Arrives(request.SureStart, request.Boundary))
        {
            for (int at = request.SureStart; at < request.Boundary;)
            {
                at += Pass(at, found);
            }

            return;
        }

        Vote(request, found);
    }

    private void Vote(in ScanRequest request, List<int> found)
    {
        Span<byte> votes = stackalloc byte[request.Boundary];
        votes.Clear();
        int voters = 0;
        for (int start = 0; start < Math.Min(CandidateStarts, request.Boundary); start++)
        {
            if (!Arrives(start, request.Boundary))
            {
                continue;
            }

            voters++;
            for (int at = start; at < request.Boundary;)
            {
                votes[at]++;
                at += Decode(at, out _);
            }
        }

        for (int at = request.PageStart; at < request.Boundary; at++)
        {
            if (votes[at] * 2 > voters)
            {
                _ = Pass(at, found);
            }
        }
    }

    /// <summary>Takes an instruction for one that runs.</summary>
    /// <returns>Its length.</returns>
    private int Pass(int at, List<int> found)
    {
        int length = Decode(at, out bool silent);
        int offset = at - pageStart;
        if (offset >= 0)
        {
            Starts[offset] = true;
            if (silent)
            {
                found.Add(offset);
            }
        }

        return length;
    }

    private bool Arrives(int start, int boundary)
    {
        int at = start;
        while (at < boundary)
        {
            at += Decode(at, out _);
        }

        return at == boundary;
    }

    /// <summary>Decodes one instruction, once; bytes that are none count as one byte, as a disassembler would go on.</summary>
    private int Decode(int offset, out bool silent)
    {
        int known = offset < decoded.Length ? decoded[offset] : 0;
        if (known == 0)
        {
            known = DecodeNew(offset);
            if (offset < decoded.Length)
            {
                decoded[offset] = (byte)known;
            }
        }

        silent = (known & SilentBit) != 0;
        return known & ~SilentBit;
    }

    private int DecodeNew(int offset)
    {
        if (changes.Count > 0 && (uint)(offset - pageStart) < (uint)resume.Length && resume[offset - pageStart] is > 0 and int goesOn)
        {
            return goesOn - offset;
        }

        reader.Position = offset;
        decoder.Decode(out Instruction instruction);
        if (instruction.IsInvalid)
        {
            return 1;
        }

        return instruction.Length | (SilentInstructions.IsSilent(instruction) ? SilentBit : 0);
    }

    /// <summary>Notes where there is no code. Where the guest is about to execute there is.</summary>
    private void NoteChanges(int boundary)
    {
        Array.Clear(resume);
        foreach ((int start, int end) in changes)
        {
            if (boundary <= pageStart + start || boundary >= pageStart + end)
            {
                resume.AsSpan(start..Math.Min(end, resume.Length)).Fill(pageStart + end);
            }
        }
    }

    private sealed class WindowReader : CodeReader
    {
        private byte[] bytes = [];
        private int length;

        internal int Position { get; set; }

        internal void Load(ReadOnlySpan<byte> window)
        {
            if (bytes.Length < window.Length)
            {
                bytes = new byte[window.Length];
            }

            window.CopyTo(bytes);
            length = window.Length;
        }

        public override int ReadByte() => Position < length ? bytes[Position++] : -1;
    }
}
