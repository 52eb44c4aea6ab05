using System.Collections;
using Dmp.Kvm.Locking;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.CodeScan;

/// <summary>What a scan may put into a page of code besides traps. Called under the lock of <see cref="CodePages"/>.</summary>
internal interface IPagePatches
{
    /// <summary>A page was scanned: says what to replace, by <see cref="CodePages.TryReplace"/>.</summary>
    /// <param name="page">Virtual address of the page.</param>
    void Scanned(ulong page);

    /// <summary>A page's original bytes are back.</summary>
    /// <param name="page">Virtual address of the page.</param>
    void Released(ulong page);
}

/// <summary>Whether bytes of a code page could be replaced.</summary>
internal enum Replacement
{
    /// <summary>They are.</summary>
    Done,

    /// <summary>The page is not scanned at the moment: the guest is changing it, or has never run it.</summary>
    NotScanned,

    /// <summary>The guest's bytes are others than expected.</summary>
    Different,
}

/// <summary>
/// The frames that hold scanned kernel code, with the bytes that traps and patches replaced. One for the machine; every member takes the
/// lock, which nobody holds while waiting for anything.
/// </summary>
/// <remarks>
/// A frame becomes code in two steps, so that every vCPU's virtual TLB agrees: it is claimed (<see cref="Claim"/>: nobody maps it writable
/// any more), writable entries of before are dropped everywhere, and it is scanned and added. It stops being code in two steps as well: it
/// is closed (<see cref="Close"/>: nobody maps it executable any more), all entries are dropped everywhere, and its bytes come back
/// (<see cref="Remove"/>).
/// </remarks>
internal sealed class CodePages(GuestMemory memory)
{
    /// <summary>HLT: the one-byte instruction that faults at CPL 3 whatever comes before or after it.</summary>
    internal const byte Trap = 0xF4;

    private const int NoSpill = -1;

    private readonly OrderedLock sync = new(LockRank.CodePages);
    private readonly Dictionary<ulong, CodePage> pages = [];
    private readonly Dictionary<ulong, ulong> frames = [];
    private readonly Dictionary<ulong, KnownCode> known = [];
    private readonly CodeCopies copies = new();
    private readonly Dictionary<ulong, FormerBytes> former = [];
    private readonly byte[] scratch = new byte[Paging.PageSize];

    private long generation;

    /// <summary>
    /// Held from the first to the last step of a change from data to code or back, also while other vCPUs leave guest code for it.
    /// </summary>
    internal OrderedLock Changes { get; } = new(LockRank.CodeChanges);

    /// <summary>
    /// Changes with every change of what stands in a scanned page. A vCPU that trapped before one, and finds other bytes than those that
    /// trapped, has to look again. Any thread.
    /// </summary>
    internal long Generation => Volatile.Read(ref generation);

    /// <summary>Asked at each scan; set before the first.</summary>
    internal IPagePatches? Patches { get; set; }

    /// <summary>Frames of code that was loaded and not copied. Set before the first scan.</summary>
    internal (ulong First, ulong End) OriginalText { get; set; }

    /// <summary>Frames scanned since the start.</summary>
    internal long Scans { get; private set; }

    /// <summary>Frames given back because the guest wrote to them.</summary>
    internal long Restores { get; private set; }

    /// <summary>Whether a frame holds scanned code.</summary>
    internal bool Contains(ulong frame)
    {
        using (sync.Enter())
        {
            return pages.ContainsKey(frame);
        }
    }

    /// <summary>
    /// Whether a frame may be executed at a page without another scan. A frame with patches may not at another page than the one that
    /// it was scanned at: their jumps lead elsewhere from there.
    /// </summary>
    internal bool MayExecute(ulong frame, ulong page)
    {
        using (sync.Enter())
        {
            return TryGetOpen(frame, out CodePage? found) && (found.Patched == 0 || found.Page == page);
        }
    }

    /// <summary>The frame of a page that is scanned at a virtual address.</summary>
    internal bool TryFindFrame(ulong page, out ulong frame)
    {
        using (sync.Enter())
        {
            return frames.TryGetValue(page, out frame);
        }
    }

    /// <summary>The frames of scanned code below one.</summary>
    internal ulong[] FramesBelow(ulong end)
    {
        using (sync.Enter())
        {
            return [.. pages.Keys.Where(frame => frame < end)];
        }
    }

    /// <summary>Whether a frame holds code that was loaded, not made.</summary>
    internal bool IsOriginalText(ulong frame) => frame >= OriginalText.First && frame < OriginalText.End;

    /// <summary>Whether any frame of a 2 MiB range holds scanned code.</summary>
    internal bool AnyInLargePage(ulong frame)
    {
        const ulong Frames = Paging.LargePageSize / Paging.PageSize;
        ulong first = frame & ~(Frames - 1);
        using (sync.Enter())
        {
            if ((ulong)pages.Count < Frames)
            {
                foreach (ulong page in pages.Keys)
                {
                    if (page - first < Frames)
                    {
                        return true;
                    }
                }

                return false;
            }

            for (ulong page = first; page < first + Frames; page++)
            {
                if (pages.ContainsKey(page))
                {
                    return true;
                }
            }

            return false;
        }
    }

    /// <summary>A frame is about to be scanned: from now on it counts as code that may not be executed yet.</summary>
    internal void Claim(ulong frame)
    {
        using (sync.Enter())
        {
            _ = pages.TryAdd(frame, new CodePage(page: 0, NoSpill));
        }
    }

    /// <summary>A frame is about to be given back: from now on it may not be executed.</summary>
    /// <returns>Whether it was code.</returns>
    internal bool Close(ulong frame)
    {
        using (sync.Enter())
        {
            if (!pages.TryGetValue(frame, out CodePage? page))
            {
                return false;
            }

            page.IsOpen = false;
            return true;
        }
    }

    /// <summary>Writes to a frame, unless it is code.</summary>
    /// <returns>Whether it was written: if not, it has to be given back first.</returns>
    internal bool TryWrite(GuestPhysicalAddress address, ReadOnlySpan<byte> source)
    {
        using (sync.Enter())
        {
            if (pages.ContainsKey(address.Frame))
            {
                return false;
            }

            source.CopyTo(memory.Slice(address, source.Length));
            return true;
        }
    }

    /// <summary>Puts traps into a frame and remembers the bytes.</summary>
    /// <param name="frame">The frame.</param>
    /// <param name="page">Virtual address that it runs at.</param>
    /// <param name="traps">Offsets in the frame.</param>
    /// <param name="spill">Bytes of the last instruction beyond the frame.</param>
    /// <param name="starts">Where its instructions begin; null when that is not known.</param>
    internal void Add(ulong frame, ulong page, List<int> traps, int spill, BitArray? starts = null)
    {
        using (sync.Enter())
        {
            if (TryGetOpen(frame, out _))
            {
                return;
            }

            Scans++;
            Span<byte> bytes = Bytes(frame);
            CodePage added = new(page, spill) { IsOpen = true, Starts = starts is null ? null : new BitArray(starts) };
            foreach (int trap in traps)
            {
                added.Replaced.Add((ushort)trap, bytes[trap]);
                added.Runs.Add(trap, 1);
                bytes[trap] = Trap;
            }

            pages[frame] = added;
            frames[page] = frame;
            generation++;
            Patches?.Scanned(page);
            NoteRuns(added, bytes, 0, bytes.Length);
        }
    }

    /// <summary>
    /// Puts a trap on every byte of a frame of slots (<see cref="CodeScanner.HasSlots"/>), and remembers the bytes: <see cref="Reveal"/>
    /// uncovers what is seen to run.
    /// </summary>
    /// <param name="frame">The frame.</param>
    /// <param name="page">Virtual address that it runs at.</param>
    internal void AddCovered(ulong frame, ulong page)
    {
        using (sync.Enter())
        {
            if (TryGetOpen(frame, out _))
            {
                return;
            }

            Scans++;
            Span<byte> bytes = Bytes(frame);
            CodePage added = new(page, spill: 0) { IsOpen = true, Swept = new BitArray(Paging.PageSize) };
            for (int offset = 0; offset < bytes.Length; offset++)
            {
                added.Replaced.Add((ushort)offset, bytes[offset]);
            }

            bytes.Fill(Trap);
            pages[frame] = added;
            frames[page] = frame;
            generation++;
            Patches?.Scanned(page);
        }
    }

    /// <summary>Uncovers the code that runs from an instruction on. Other vCPUs may be running in the frame.</summary>
    /// <param name="frame">The frame, added by <see cref="AddCovered"/>.</param>
    /// <param name="offset">Where the instruction begins.</param>
    /// <param name="scanner">Sweeps it.</param>
    /// <returns>Whether the frame was covered: the instruction may run, or is a trap of its own.</returns>
    internal bool Reveal(ulong frame, int offset, CodeScanner scanner)
    {
        using (sync.Enter())
        {
            if (!TryGetOpen(frame, out CodePage? page) || page.Swept is not { } swept)
            {
                return false;
            }

            Span<byte> bytes = Bytes(frame);
            byte[] own = bytes.ToArray();
            Restore(page, own, 0);
            scanner.Follow(own, offset, at => swept[at], page.Instructions);

            // From the last to the first: who comes by meets the trap on the first byte until the rest is there.
            for (int index = page.Instructions.Count - 1; index >= 0; index--)
            {
                SweptInstruction instruction = page.Instructions[index];
                for (int at = instruction.Offset + instruction.Length - 1; at >= instruction.Offset; at--)
                {
                    swept[at] = true;
                    if (instruction.Silent && at == instruction.Offset)
                    {
                        page.Runs[at] = 1;
                    }
                    else if (page.Replaced.Remove((ushort)at))
                    {
                        Volatile.Write(ref bytes[at], own[at]);
                    }
                }
            }

            // Behind the bytes: other vCPUs run on the page meanwhile, and who enters during this may still meet a trap.
            generation++;
            return true;
        }
    }

    /// <summary>Puts the original bytes back: the frame is ordinary memory again.</summary>
    /// <param name="frame">The frame.</param>
    /// <param name="address">Virtual address of the page that it ran at.</param>
    /// <returns>Whether it was code.</returns>
    internal bool Remove(ulong frame, out ulong address)
    {
        using (sync.Enter())
        {
            address = 0;
            if (!pages.Remove(frame, out CodePage? page))
            {
                return false;
            }

            address = page.Page;
            generation++;
            Restores++;
            NoteFormer(frame, page, Bytes(frame));
            Restore(page, Bytes(frame), 0);
            if (frames.TryGetValue(page.Page, out ulong current) && current == frame)
            {
                _ = frames.Remove(page.Page);
            }

            if (page.Starts is not { } starts)
            {
                _ = known.Remove(frame);
            }
            else
            {
                known[frame] = known.TryGetValue(frame, out KnownCode? before)
                    ? before.After(Bytes(frame), starts, page.Spill)
                    : new KnownCode(Bytes(frame), starts, page.Spill);
            }

            Patches?.Released(page.Page);
            return true;
        }
    }

    /// <summary>
    /// Before a frame is scanned: gives back the bytes that ours replaced where the guest has copied code of its own that was scanned
    /// before (function tracing makes its trampolines so), or has put back what it had read there, and says what the frame held before the
    /// guest changed it.
    /// </summary>
    /// <param name="frame">The frame.</param>
    /// <returns>What it held; null when it never was code.</returns>
    internal KnownCode? Prepare(ulong frame)
    {
        using (sync.Enter())
        {
            KnownCode? before = known.GetValueOrDefault(frame);
            if (!IsOriginalText(frame))
            {
                copies.Repair(Bytes(frame));
            }
            else if (before is not null && former.TryGetValue(frame, out FormerBytes? there))
            {
                there.Repair(Bytes(frame), before.Bytes);
            }

            return before;
        }
    }

    /// <summary>
    /// What a trap means that the guest has copied into a slot: a probe on an instruction where ours stood executes it there.
    /// </summary>
    /// <param name="slot">Frame of the slot.</param>
    /// <param name="source">Address of the instruction that was copied.</param>
    /// <param name="meant">The first byte of the guest's own instruction.</param>
    /// <returns>Whether it is a page of slots, and a trap has stood at the source.</returns>
    internal bool TryReadCopiedTrap(ulong slot, ulong source, out byte meant)
    {
        using (sync.Enter())
        {
            meant = 0;
            return TryGetOpen(slot, out CodePage? page)
                && page.Swept is not null
                && frames.TryGetValue(source & ~Paging.PageOffsetMask, out ulong frame)
                && former.TryGetValue(frame, out FormerBytes? there)
                && there.TryFindTrapped((int)(source & Paging.PageOffsetMask), out meant);
        }
    }

    /// <summary>Replaces bytes of a scanned page.</summary>
    /// <param name="address">Virtual address of the first; all lie in one page.</param>
    /// <param name="expected">The guest's own bytes.</param>
    /// <param name="replacement">What stands there from now on.</param>
    internal Replacement TryReplace(ulong address, ReadOnlySpan<byte> expected, ReadOnlySpan<byte> replacement)
    {
        using (sync.Enter())
        {
            if (!TryFind(address, out ulong frame, out CodePage? page, out Span<byte> all))
            {
                return Replacement.NotScanned;
            }

            int offset = (int)(address & Paging.PageOffsetMask);
            Span<byte> own = stackalloc byte[expected.Length];
            Span<byte> bytes = all.Slice(offset, expected.Length);
            bytes.CopyTo(own);
            Restore(page, own, offset);
            if (!own.SequenceEqual(expected))
            {
                // A guest that copied the replaced bytes, and now puts them back where it took them from, means its own.
                if (!ReplacedBytes.IsMixture(own, expected, replacement))
                {
                    return Replacement.Different;
                }
            }

            for (int index = 0; index < expected.Length; index++)
            {
                if (bytes[index] == Trap && page.Runs.GetValueOrDefault(offset + index) == 1)
                {
                    NoteFormer(frame, offset + index, bytes.Slice(index, 1), expected.Slice(index, 1));
                }

                page.Replaced[(ushort)(offset + index)] = expected[index];
            }

            generation++;
            replacement.CopyTo(bytes);
            page.Patched++;
            page.Runs[offset] = expected.Length;
            NoteRuns(page, all, offset, expected.Length);
            return Replacement.Done;
        }
    }

    /// <summary>Undoes <see cref="TryReplace"/>.</summary>
    /// <param name="address">Virtual address of the first byte.</param>
    /// <param name="original">The guest's own bytes.</param>
    /// <param name="traps">Offsets from the first byte where silent instructions begin.</param>
    /// <returns>Whether the page is scanned; if not, the guest's bytes are back already.</returns>
    internal bool TryRestore(ulong address, ReadOnlySpan<byte> original, ReadOnlySpan<int> traps)
    {
        using (sync.Enter())
        {
            if (!TryFind(address, out ulong frame, out CodePage? page, out Span<byte> bytes))
            {
                return false;
            }

            generation++;
            int offset = (int)(address & Paging.PageOffsetMask);
            NoteFormer(frame, offset, bytes.Slice(offset, original.Length), original);
            for (int index = 0; index < original.Length; index++)
            {
                bool isTrap = traps.Contains(index);
                bytes[offset + index] = isTrap ? Trap : original[index];
                if (isTrap)
                {
                    page.Runs[offset + index] = 1;
                }
                else
                {
                    _ = page.Runs.Remove(offset + index);
                    _ = page.Replaced.Remove((ushort)(offset + index));
                }
            }

            page.Patched--;
            NoteRuns(page, bytes, offset, original.Length);
            return true;
        }
    }

    /// <summary>Runs an action that no scan, no release and no replacement can happen beside.</summary>
    internal void Locked(Action action)
    {
        using (sync.Enter())
        {
            action();
        }
    }

    /// <summary>Reads a part of a scanned page as it runs.</summary>
    /// <returns>Whether the page is scanned.</returns>
    internal bool TryReadRunning(ulong address, Span<byte> destination)
    {
        using (sync.Enter())
        {
            if (!TryFind(address, out _, out _, out Span<byte> bytes))
            {
                return false;
            }

            bytes.Slice((int)(address & Paging.PageOffsetMask), destination.Length).CopyTo(destination);
            return true;
        }
    }

    /// <summary>How far the last instruction of a scanned frame reaches into the next page, or -1 when it is not scanned.</summary>
    internal int Spill(ulong frame)
    {
        using (sync.Enter())
        {
            return TryGetOpen(frame, out CodePage? page) ? page.Spill : NoSpill;
        }
    }

    /// <summary>Reads a part of a frame as the guest wrote it.</summary>
    /// <param name="frame">The frame.</param>
    /// <param name="offset">First byte within it.</param>
    /// <param name="destination">Receives the bytes; must not reach beyond the frame.</param>
    /// <returns>Whether the first byte is one that a trap replaced.</returns>
    internal bool ReadOriginal(ulong frame, int offset, Span<byte> destination)
    {
        using (sync.Enter())
        {
            Bytes(frame).Slice(offset, destination.Length).CopyTo(destination);
            return pages.TryGetValue(frame, out CodePage? page) && Restore(page, destination, offset);
        }
    }

    /// <summary>Notes what copies will look like after bytes changed: every run of replaced bytes that is known by them.</summary>
    private void NoteRuns(CodePage page, ReadOnlySpan<byte> bytes, int offset, int length)
    {
        foreach ((int run, int runLength) in page.Runs)
        {
            if (run - CodeCopies.ContextLength < offset + length && offset < run + CodeCopies.ContextLength)
            {
                copies.Note(bytes, run, Own(page, run, runLength));
            }
        }
    }

    /// <summary>Notes all of ours that stands in a frame of the kernel's own text, before it goes.</summary>
    private void NoteFormer(ulong frame, CodePage page, ReadOnlySpan<byte> bytes)
    {
        if (!IsOriginalText(frame))
        {
            return;
        }

        foreach ((int run, int length) in page.Runs)
        {
            // A trap under a patch is not there at the moment, but for where the patch is traps as well.
            if (length > 1 || bytes[run] == Trap)
            {
                NoteFormer(frame, run, bytes.Slice(run, length), Own(page, run, length));
            }
        }
    }

    /// <summary>The guest's bytes where all are replaced; until the next call.</summary>
    private ReadOnlySpan<byte> Own(CodePage page, int offset, int length)
    {
        for (int index = 0; index < length; index++)
        {
            scratch[index] = page.Replaced[(ushort)(offset + index)];
        }

        return scratch.AsSpan(0, length);
    }

    private void NoteFormer(ulong frame, int offset, ReadOnlySpan<byte> ours, ReadOnlySpan<byte> meant)
    {
        if (!IsOriginalText(frame))
        {
            return;
        }

        if (!former.TryGetValue(frame, out FormerBytes? there))
        {
            former.Add(frame, there = new FormerBytes());
        }

        there.Note(offset, ours, meant);
    }

    private bool TryGetOpen(ulong frame, [System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out CodePage? page) =>
        pages.TryGetValue(frame, out page) && page.IsOpen;

    private bool TryFind(
        ulong address, out ulong frame, [System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out CodePage? page, out Span<byte> bytes)
    {
        page = null;
        bytes = default;
        if (!frames.TryGetValue(address & ~Paging.PageOffsetMask, out frame) || !TryGetOpen(frame, out page))
        {
            return false;
        }

        bytes = Bytes(frame);
        return true;
    }

    /// <summary>Puts a page's own bytes into a copy of a part of it, or into the page itself.</summary>
    /// <returns>Whether the first byte was replaced.</returns>
    private static bool Restore(CodePage page, Span<byte> bytes, int offset)
    {
        if (bytes.Length < page.Replaced.Count)
        {
            for (int index = 0; index < bytes.Length; index++)
            {
                if (page.Replaced.TryGetValue((ushort)(offset + index), out byte original))
                {
                    bytes[index] = original;
                }
            }
        }
        else
        {
            foreach ((ushort at, byte original) in page.Replaced)
            {
                if ((uint)(at - offset) < (uint)bytes.Length)
                {
                    bytes[at - offset] = original;
                }
            }
        }

        return page.Replaced.ContainsKey((ushort)offset);
    }

    private Span<byte> Bytes(ulong frame) =>
        memory.Slice(new GuestPhysicalAddress(frame << Paging.PageShift), Paging.PageSize);

    private sealed class CodePage(ulong page, int spill)
    {
        /// <summary>Offsets whose bytes are ours now, with the guest's.</summary>
        internal readonly Dictionary<ushort, byte> Replaced = [];

        /// <summary>Where traps and patches begin, with the bytes that each of them replaced.</summary>
        internal readonly Dictionary<int, int> Runs = [];
        internal readonly ulong Page = page;
        internal readonly int Spill = spill;

        /// <summary>Where instructions begin, as far as the scan found out; null in a page of slots.</summary>
        internal BitArray? Starts;
        internal int Patched;

        /// <summary>Scanned, and not about to be given back.</summary>
        internal bool IsOpen;

        /// <summary>In a page of slots, the bytes that are known to be code; null in any other.</summary>
        internal BitArray? Swept;

        /// <summary>What the last sweep went through; scratch.</summary>
        internal readonly List<SweptInstruction> Instructions = [];
    }
}
