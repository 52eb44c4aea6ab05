using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Specs.CodeScan;

/// <summary>
/// A page of code that a kernel changes in several places at once, each in the steps that Linux takes: INT3s of probes, near jumps of
/// optimized probes over several instructions, and branches that are switched to no-operations and back.
/// </summary>
internal sealed class ChangingCode
{
    private const byte Int3 = 0xCC;
    private const int PageSize = Paging.PageSize;
    private const int NearLength = 5;

    /// <summary>What a near branch ends in that stays in the kernel's text, or leads to its modules: no other is longer than 1 GiB.</summary>
    private static readonly byte[] highest = [0x00, 0x3F, 0xC0, 0xFF];

    private readonly Random random;
    private readonly byte[] original;
    private readonly int[] starts;
    private readonly List<Site> sites = [];

    internal ChangingCode(Random random)
    {
        this.random = random;
        (original, starts) = Generate();
        Window = [.. original];
        Place();
    }

    /// <summary>What the page holds, with some bytes of the next.</summary>
    internal byte[] Window { get; }

    internal ReadOnlySpan<byte> Page => Window.AsSpan(0, PageSize);

    /// <summary>Where instructions begin that the kernel may execute.</summary>
    internal IEnumerable<int> Live => starts.Where(at => !sites.Exists(site => at > site.Start && at < site.Start + site.Covered));

    /// <summary>Where silent instructions begin that the kernel may execute.</summary>
    internal IEnumerable<int> Silent => Live.Where(at => Window[at] == original[at] && IsSilent(at));

    /// <summary>The kernel takes some of its changes a step further.</summary>
    internal void Step()
    {
        int kind = random.Next(4);
        foreach (Site site in sites.Where(site => kind > 0 ? random.Next(3) == 0 : site.IsOnTheWay))
        {
            site.Step(random, Window);
        }
    }

    public override string ToString() => string.Join("; ", sites.Select(site =>
        $"{site.GetType().Name} {site.Start:x3}: {Convert.ToHexString(original, site.Start, 12)} is {Convert.ToHexString(Window, site.Start, 12)}"));

    private bool IsSilent(int at) =>
        SilentInstructions.IsSilent(Decoder.Create(64, new ByteArrayCodeReader(original, at, original.Length - at)).Decode());

    private (byte[] Code, int[] Starts) Generate()
    {
        Assembler assembler = new(64);
        for (int index = 0; index < 1600; index++)
        {
            switch (random.Next(24))
            {
                case 0: assembler.db(0x0F, 0x1F, 0x44, 0x00, 0x00); break;
                case 1: assembler.db(Near(0xE8)); break;
                case 2: assembler.db(Near(0xE9)); break;
                case 3: assembler.db(0x66, 0x90); break;
                case 4: assembler.db(0xEB, (byte)random.Next()); break;
                default: RandomCode.Emit(assembler, random); break;
            }
        }

        using MemoryStream stream = new();
        assembler.Assemble(new StreamCodeWriter(stream), 0x1000);
        byte[] code = stream.ToArray();
        List<int> starts = [];
        Decoder decoder = Decoder.Create(64, new ByteArrayCodeReader(code));
        while (decoder.IP < PageSize)
        {
            starts.Add((int)decoder.IP);
            _ = decoder.Decode();
        }

        return (code, [.. starts]);
    }

    private void Place()
    {
        int free = 0;
        for (int index = 0; index < starts.Length - 10; index++)
        {
            int start = starts[index];
            int length = starts[index + 1] - start;

            // Here a probe on each instruction, there jumps beside one another, there a single change.
            int region = index / 30 % 5;
            int density = region switch { 0 => 100, 2 => 40, 4 => 5, _ => 0 };
            if (start < free || random.Next(100) >= density)
            {
                continue;
            }

            bool isBranch = original[start] is 0xE8 or 0xE9 or 0xEB;
            bool isNop = original[start] is 0x0F or 0x66 && length is 2 or NearLength && original[start + 1] is 0x1F or 0x90;
            int covers = starts.First(at => at >= start + NearLength);
            bool mayOptimize = !isBranch && !starts.Any(at => at > start && at < covers && original[at] is 0xE8 or 0xE9 or 0xEB);
            int kind = random.Next(2);
            if ((isBranch || isNop) && kind == 0)
            {
                sites.Add(new Switch(start, Window.AsSpan(start, length).ToArray(), length == 2
                    ? () => random.Next(2) == 0 ? [0x66, 0x90] : [0xEB, (byte)random.Next()]
                    : () => random.Next(3) == 0 ? [0x0F, 0x1F, 0x44, 0x00, 0x00] : Near((byte)random.Next(0xE8, 0xEA))));
            }
            else if (mayOptimize && kind == 1 && region > 0)
            {
                sites.Add(new OptimizedProbe(start, covers - start, original.AsSpan(start, NearLength).ToArray(), Near(0xE9)));
                free = covers;
            }
            else
            {
                sites.Add(new Probe(start, original[start]));
            }
        }
    }

    private byte[] Near(byte opcode) => [opcode, Low(), Low(), Low(), highest[random.Next(highest.Length)]];

    /// <summary>A byte that does not look like the beginning of a change: nobody can tell these apart beside another change.</summary>
    private byte Low()
    {
        byte low = (byte)random.Next();
        return low is Int3 or 0xE8 or 0xE9 or 0xEB ? (byte)0 : low;
    }

    /// <summary>A place that the kernel changes.</summary>
    private abstract class Site(int start)
    {
        internal int Start => start;

        /// <summary>Bytes that are no code behind the first, and the first.</summary>
        internal virtual int Covered => 0;

        internal virtual bool IsOnTheWay => false;

        internal abstract void Step(Random random, Span<byte> window);
    }

    private sealed class Probe(int start, byte first) : Site(start)
    {
        internal override void Step(Random random, Span<byte> window) => window[Start] = window[Start] == Int3 ? first : Int3;
    }

    /// <summary>INT3, rest, first byte.</summary>
    private sealed class Switch(int start, byte[] now, Func<byte[]> choose) : Site(start)
    {
        private byte[] aim = now;
        private int step;

        internal override bool IsOnTheWay => step > 0;

        internal override void Step(Random random, Span<byte> window)
        {
            switch (step)
            {
                case 0:
                    aim = choose();
                    window[Start] = Int3;
                    break;
                case 1:
                    aim.AsSpan(1).CopyTo(window[(Start + 1)..]);
                    break;
                default:
                    window[Start] = aim[0];
                    break;
            }

            step = (step + 1) % 3;
        }
    }

    /// <summary>A probe whose INT3 becomes a jump in three steps, and an INT3 again in two.</summary>
    private sealed class OptimizedProbe(int start, int length, byte[] original, byte[] jump) : Site(start)
    {
        private int step;

        internal override int Covered => step is 2 or 3 or 4 ? length : 0;

        internal override bool IsOnTheWay => step is 2 or 4;

        internal override void Step(Random random, Span<byte> window)
        {
            step = step == 1 && random.Next(3) == 0 ? 0 : (step + 1) % 5 is 0 ? 1 : step + 1;
            window[Start] = step switch
            {
                0 => original[0],
                3 => jump[0],
                _ => Int3,
            };
            (Covered > 0 ? jump : original).AsSpan(1).CopyTo(window[(Start + 1)..]);
        }
    }
}
