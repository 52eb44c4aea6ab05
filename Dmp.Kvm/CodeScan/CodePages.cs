using Dmp.Kvm.Memory;

namespace Dmp.Kvm.CodeScan;

/// <summary>
/// The frames that hold scanned kernel code, with the bytes that traps replaced. One for the machine; every member takes the lock,
/// which nobody holds while waiting for anything.
/// </summary>
internal sealed class CodePages(GuestMemory memory)
{
    /// <summary>HLT: the one-byte instruction that faults at CPL 3 whatever comes before or after it.</summary>
    private const byte Trap = 0xF4;

    private readonly Lock sync = new();
    private readonly Dictionary<ulong, CodePage> pages = [];

    /// <summary>Frames scanned since the start.</summary>
    internal long Scans { get; private set; }

    /// <summary>Frames given back because the guest wrote to them.</summary>
    internal long Restores { get; private set; }

    /// <summary>Whether a frame holds scanned code.</summary>
    internal bool Contains(ulong frame)
    {
        lock (sync)
        {
            return pages.ContainsKey(frame);
        }
    }

    /// <summary>Whether any frame of a 2 MiB range holds scanned code.</summary>
    internal bool AnyInLargePage(ulong frame)
    {
        const ulong Frames = Paging.LargePageSize / Paging.PageSize;
        ulong first = frame & ~(Frames - 1);
        lock (sync)
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

    /// <summary>Puts traps into a frame and remembers the bytes.</summary>
    /// <param name="frame">The frame.</param>
    /// <param name="traps">Offsets in the frame.</param>
    /// <param name="spill">Bytes of the last instruction beyond the frame.</param>
    internal void Add(ulong frame, List<int> traps, int spill)
    {
        lock (sync)
        {
            if (pages.ContainsKey(frame))
            {
                return;
            }

            Scans++;
            Span<byte> bytes = Bytes(frame);
            CodePage page = new(traps.Count, spill);
            for (int index = 0; index < traps.Count; index++)
            {
                page.Offsets[index] = (ushort)traps[index];
                page.Originals[index] = bytes[traps[index]];
                bytes[traps[index]] = Trap;
            }

            pages.Add(frame, page);
        }
    }

    /// <summary>Puts the original bytes back: the frame is ordinary memory again.</summary>
    /// <returns>Whether it was code.</returns>
    internal bool Remove(ulong frame)
    {
        lock (sync)
        {
            if (!pages.Remove(frame, out CodePage? page))
            {
                return false;
            }

            Restores++;
            Restore(page, Bytes(frame), 0);
            return true;
        }
    }

    /// <summary>How far the last instruction of a scanned frame reaches into the next page, or -1 when it is not scanned.</summary>
    internal int Spill(ulong frame)
    {
        lock (sync)
        {
            return pages.TryGetValue(frame, out CodePage? page) ? page.Spill : -1;
        }
    }

    /// <summary>Reads a part of a frame as the guest wrote it.</summary>
    /// <param name="frame">The frame.</param>
    /// <param name="offset">First byte within it.</param>
    /// <param name="destination">Receives the bytes; must not reach beyond the frame.</param>
    /// <returns>Whether the first byte is one that a trap replaced.</returns>
    internal bool ReadOriginal(ulong frame, int offset, Span<byte> destination)
    {
        lock (sync)
        {
            Bytes(frame).Slice(offset, destination.Length).CopyTo(destination);
            return pages.TryGetValue(frame, out CodePage? page) && Restore(page, destination, offset);
        }
    }

    private static bool Restore(CodePage page, Span<byte> bytes, int offset)
    {
        int index = Array.BinarySearch(page.Offsets, (ushort)offset);
        bool first = index >= 0;
        for (index = first ? index : ~index; index < page.Offsets.Length; index++)
        {
            int at = page.Offsets[index] - offset;
            if (at >= bytes.Length)
            {
                break;
            }

            bytes[at] = page.Originals[index];
        }

        return first;
    }

    private Span<byte> Bytes(ulong frame) =>
        memory.Slice(new GuestPhysicalAddress(frame << Paging.PageShift), Paging.PageSize);

    private sealed class CodePage(int traps, int spill)
    {
        internal readonly ushort[] Offsets = new ushort[traps];
        internal readonly byte[] Originals = new byte[traps];
        internal readonly int Spill = spill;
    }
}
