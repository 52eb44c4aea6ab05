using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Specs.Machine;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>
/// The virtual TLB together with the TLB below it, which is the processor's or one that KVM keeps: a guest that changes its tables sees
/// what they say behind each flush, and before it what they have said since the last one.
/// </summary>
[Collection(KvmMachineCollection.Name)]
public class TlbSpecs
{
    private const int Steps = 3000;
    private const int Frames = 64;
    private const int Absent = -1;
    private const int PieceSize = 64;
    private const ulong LowPages = 0x1000_0000;
    private const ulong HighPages = 0xFFFF_FFFF_8400_0000;
    private const ulong KeepEntries = 1UL << 63;
    private const ulong Present = (ulong)(PageEntry.Present | PageEntry.Writable);

    private static readonly int[] Pcids = [2, 4, 6];

    private readonly List<Page> pages =
    [
        .. Enumerable.Range(0, 24).Select(index => new Page(LowPages + ((ulong)index * Paging.PageSize), IsGlobal: false)),
        .. Enumerable.Range(0, 24).Select(index => new Page(HighPages + ((ulong)index * Paging.PageSize), IsGlobal: index % 2 == 0)),
    ];

    private enum Piece
    {
        Read,
        Invalidate,
        LoadRoot,
    }

    [SkippableFact(DisplayName = "A guest that maps other frames sees them behind a flush, and no frame that was flushed away")]
    public void Flushes()
    {
        using PatchRig rig = new(patching: true, Code(out ulong[] marks), marks);
        for (int frame = 0; frame < Frames; frame++)
        {
            rig.FreeFrame(frame, out _) = (ulong)frame;
        }

        pages.ForEach(page => Map(rig, page, Absent));
        int pcid = Pcids[0];
        PatchRig.CheckSeeds(Steps, random =>
        {
            Page page = pages[random.Next(pages.Count)];
            if (random.Next(3) == 0)
            {
                Page changed = random.Next(2) == 0 ? page : pages[random.Next(pages.Count)];
                Map(rig, changed, random.Next(4) == 0 ? Absent : random.Next(Frames));
            }

            Piece piece = (Piece)(random.Next(6) % 3);
            bool keep = random.Next(2) == 0;
            switch (piece)
            {
                case Piece.Invalidate:
                    page.Flush(page.IsGlobal ? Pcids : [pcid]);
                    break;
                case Piece.LoadRoot:
                    pcid = Pcids[random.Next(Pcids.Length)];
                    if (!keep)
                    {
                        pages.Where(one => !one.IsGlobal).ToList().ForEach(one => one.Flush([pcid]));
                    }

                    break;
            }

            GuestState state = GuestState.Plain(PatchRig.Code + ((ulong)piece * PieceSize));
            state.General[GuestState.Rax] = PatchRig.Root(pcid) | (keep ? KeepEntries : 0);
            state.General[GuestState.Rdx] = page.Address;
            GuestResult result = rig.Run(state);
            if (result["rip"] == PatchRig.Handler((int)ExceptionVector.PageFault))
            {
                // No TLB remembers that nothing was there.
                Assert.Equal(Absent, page.Frame);
            }
            else
            {
                Assert.Contains((int)result["rsi"], page.Seen(pcid));
            }
        });
    }

    private static void Map(PatchRig rig, Page page, int frame)
    {
        ulong entry = 0;
        if (frame != Absent)
        {
            _ = rig.FreeFrame(frame, out entry);
            entry |= Present | (page.IsGlobal ? (ulong)PageEntry.Global : 0);
        }

        rig.Entry(page.Address) = entry;
        page.Change(frame);
    }

    private static byte[] Code(out ulong[] marks)
    {
        Action<Assembler>[] pieces = [_ => { }, a => a.invlpg(__[rdx]), a => a.mov(cr3, rax)];
        byte[] code = new byte[pieces.Length * PieceSize];
        marks = new ulong[pieces.Length];
        for (int index = 0; index < pieces.Length; index++)
        {
            Action<Assembler> piece = pieces[index] + (a => a.mov(rsi, __qword_ptr[rdx]));
            PatchRig.Marked(PatchRig.Code + (ulong)(index * PieceSize), piece, out marks[index]).CopyTo(code, index * PieceSize);
        }

        return code;
    }

    /// <summary>A page, and the frames that a TLB may have for it.</summary>
    private sealed record Page(ulong Address, bool IsGlobal)
    {
        private readonly Dictionary<int, HashSet<int>> seen = Pcids.ToDictionary(pcid => pcid, _ => new HashSet<int>());

        internal int Frame { get; private set; } = Absent;

        internal IEnumerable<int> Seen(int pcid) => seen[pcid];

        internal void Change(int frame)
        {
            Frame = frame;
            foreach (HashSet<int> frames in seen.Values)
            {
                _ = frames.Add(frame);
            }
        }

        internal void Flush(int[] pcids)
        {
            foreach (int pcid in pcids)
            {
                seen[pcid] = [Frame];
            }
        }
    }
}
