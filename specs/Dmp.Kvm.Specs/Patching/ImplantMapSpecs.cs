using System.Collections.Immutable;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Patching;
using FsCheck.Xunit;
using Iced.Intel;

namespace Dmp.Kvm.Specs.Patching;

public class ImplantMapSpecs
{
    private const ulong Text = 0xFFFF_FFFF_8100_0000;
    private const int Windows = 40;
    private const int Distance = 64;

    private static readonly byte[][] Pieces =
    [
        [0xFA], [0xFB], [0x9C], [0x9D], [0x90], [0x50], [0x48, 0x89, 0xC8], [0xFF, 0xC1], [0x0F, 0x20, 0xD8], [0x8C, 0xC8],
        [0x48, 0x8B, 0x05, 0x10, 0x20, 0x00, 0x00], [0x0F, 0xA2], [0xB8, 1, 2, 3, 4],
    ];

    private static readonly TemplateSet Templates = new(new TemplateHost(FsGsBase: true), new HashSet<string>());

    [Property(
        DisplayName = "Every instruction of every implant is found, no other byte of the arena is one, and the insides of the windows in"
            + " force, and they alone, lead to the same instruction in the implant",
        MaxTest = 100)]
    public void Both_ways(int seed)
    {
        Random random = new(seed);
        ImplantMap map = new();
        List<(ulong Window, ImmutableArray<Instruction> Code, EncodedImplant Implant)> windows = [];
        ulong arena = MachineLayout.ArenaBase;
        foreach (int index in Enumerable.Range(0, Windows).OrderBy(_ => random.Next()))
        {
            ulong window = Text + (ulong)(index * Distance);
            ImmutableArray<Instruction> code = Window(random, window);
            EncodedImplant implant = Encode(code, arena);
            arena += (ulong)(implant.Code.Length + random.Next(3));
            windows.Add((window, code, implant));
        }

        foreach (var (_, _, implant) in windows.OrderBy(_ => random.Next()))
        {
            map.Add(implant);
        }

        HashSet<ulong> open = [];
        for (int step = 0; step < 3 * Windows; step++)
        {
            var (window, code, implant) = windows[random.Next(Windows)];
            if (open.Remove(window))
            {
                map.Close(window, code[^1].NextIP);
            }
            else
            {
                _ = open.Add(window);
                map.Open(window, implant, code[^1].NextIP);
            }
        }

        Dictionary<ulong, ImplantAddress> points = windows
            .SelectMany(one => one.Implant.Points.Select(point => (Address: one.Implant.Address + (ulong)point.Offset, point)))
            .ToDictionary(one => one.Address, one => one.point);
        for (ulong address = MachineLayout.ArenaBase - 32; address < arena + 64; address++)
        {
            Assert.Equal(points.TryGetValue(address, out ImplantAddress point) ? point : null, map.Find(address));
        }

        Dictionary<ulong, ulong> entries = [];
        foreach (var (window, code, implant) in windows.Where(one => open.Contains(one.Window)))
        {
            foreach (Instruction instruction in code[1..])
            {
                ImplantAddress begin = implant.Points.First(point =>
                    point.GuestAddress == instruction.IP && point.Point is ImplantPoint.Exact or ImplantPoint.Shadowed);
                entries.Add(instruction.IP, implant.Address + (ulong)begin.Offset);
            }
        }

        for (ulong address = Text - 32; address < Text + (Windows * Distance) + 32; address++)
        {
            Assert.Equal(entries.GetValueOrDefault(address, address), map.RealAddress(address));
        }
    }

    [Fact(DisplayName = "An empty map knows no address, and only the arena's own are in the arena")]
    public void Empty()
    {
        ImplantMap map = new();
        Assert.Null(map.Find(MachineLayout.ArenaBase));
        Assert.Equal(Text, map.RealAddress(Text));
        Assert.True(ImplantMap.IsInArena(MachineLayout.ArenaBase));
        Assert.True(ImplantMap.IsInArena(MachineLayout.ArenaBase + MachineLayout.ArenaSize - 1));
        Assert.False(ImplantMap.IsInArena(MachineLayout.ArenaBase - 1));
        Assert.False(ImplantMap.IsInArena(MachineLayout.ArenaBase + MachineLayout.ArenaSize));
    }

    [Property(
        DisplayName = "An implant's points are its instructions in order, each guest instruction begins exactly once in the guest's order,"
            + " and only what follows an STI is in a shadow",
        MaxTest = 200)]
    public void Points(int seed)
    {
        Random random = new(seed);
        ImmutableArray<Instruction> code = Window(random, Text);
        EncodedImplant implant = Encode(code, MachineLayout.ArenaBase + 0x1230);
        ImmutableArray<Instruction> implanted = ImplantEncoder.Decode(implant.Address, implant.Code.AsSpan());
        Assert.Equal(
            implanted.Select(instruction => (int)(instruction.IP - implant.Address)), implant.Points.Select(point => point.Offset));
        ImplantAddress[] begins = [.. implant.Points.Where(point => point.Point is ImplantPoint.Exact or ImplantPoint.Shadowed)];
        Assert.Equal([.. code.Select(instruction => instruction.IP), code[^1].NextIP], begins.Select(point => point.GuestAddress));
        Assert.DoesNotContain(true, begins.Select(point => point.RegistersSaved));
        for (int index = 1; index < begins.Length; index++)
        {
            Assert.Equal(code[index - 1].Mnemonic == Mnemonic.Sti, begins[index].Point == ImplantPoint.Shadowed);
        }

        foreach (ImplantAddress point in implant.Points.Where(point => point.Point == ImplantPoint.Emulate))
        {
            Assert.Equal(Mnemonic.Hlt, implanted[implant.Points.IndexOf(point)].Mnemonic);
        }
    }

    [Property(
        DisplayName = "A jump leads to the implant and a short jump to the springboard; each whole instruction behind it is the guest's own or"
            + " a trap in the place of a silent one, and what is left of one that was cut off is breakpoints",
        MaxTest = 300)]
    public void Jumps(int seed)
    {
        Random random = new(seed);
        byte[] original = Bytes(random);
        ulong springboard = Text + 2 + (ulong)random.Next(-128, 128);
        ImmutableArray<byte> jump = ImplantEncoder.Jump(Text, original, MachineLayout.ArenaBase);
        ImmutableArray<byte> shortJump = ImplantEncoder.ShortJump(Text, original, springboard);
        foreach (var (bytes, length, target) in new[] { (jump, 5, MachineLayout.ArenaBase), (shortJump, 2, springboard) })
        {
            Assert.Equal(original.Length, bytes.Length);
            Instruction first = ImplantEncoder.Decode(Text, bytes.AsSpan())[0];
            Assert.Equal((length, target), (first.Length, first.NearBranchTarget));
            foreach (Instruction instruction in ImplantEncoder.Decode(Text, original))
            {
                int offset = (int)(instruction.IP - Text);
                int end = offset + instruction.Length;
                byte[] expected = original[offset..end];
                if (offset < length)
                {
                    expected.AsSpan().Fill(0xCC);
                    offset = length;
                }
                else if (SilentInstructions.IsSilent(instruction))
                {
                    expected[0] = 0xF4;
                }

                Assert.Equal(expected.AsSpan(0, Math.Max(end - offset, 0)), bytes.AsSpan(offset..Math.Max(end, offset)));
            }
        }
    }

    [Fact(DisplayName = "A jump that does not reach is an error, not another jump")]
    public void Out_of_reach()
    {
        byte[] code = [0x90, 0x90, 0x90, 0x90, 0x90];
        Assert.Throws<OverflowException>(() => ImplantEncoder.ShortJump(Text, code, Text + 130));
        Assert.Throws<OverflowException>(() => ImplantEncoder.Jump(Text, code, 0x7000_0000_0000));
    }

    [Fact(DisplayName = "An instruction that reaches too far from the arena is refused with a reason")]
    public void Too_far()
    {
        // mov rax, [rip - 2 GiB], from where that is the only way.
        ImmutableArray<Instruction> code = ImplantEncoder.Decode(Text, [0x48, 0x8B, 0x05, 0, 0, 0, 0x80]);
        Assert.Null(ImplantEncoder.Encode(
            ImplantEncoder.Decode(0xFFFF_8880_0000_0000, [0x48, 0x8B, 0x05, 0, 0, 0, 0]),
            Templates,
            MachineLayout.ArenaBase,
            out string reason));
        Assert.NotEmpty(reason);
        Assert.NotNull(ImplantEncoder.Encode(code, Templates, MachineLayout.ArenaBase, out reason));
        Assert.Empty(reason);
    }

    private static ImmutableArray<Instruction> Window(Random random, ulong address) => ImplantEncoder.Decode(address, Bytes(random));

    private static byte[] Bytes(Random random)
    {
        List<byte> bytes = [];
        while (bytes.Count < 5 || (bytes.Count < 40 && random.Next(4) != 0))
        {
            bytes.AddRange(Pieces[random.Next(Pieces.Length)]);
        }

        return [.. bytes];
    }

    private static EncodedImplant Encode(ImmutableArray<Instruction> code, ulong address)
    {
        EncodedImplant? implant = ImplantEncoder.Encode(code, Templates, address, out string reason);
        Assert.True(implant is not null, reason);
        return implant;
    }
}
