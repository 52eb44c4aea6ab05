using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Patching;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Patching;

public sealed class ArenaSpecs : IDisposable
{
    private const ulong Text = 0xFFFF_FFFF_8100_0000;
    private const ulong TextLength = 0x200_0000;

    private readonly MappedMemory monitor = MappedMemory.Create("dmp-spec-arena", MachineLayout.MonitorSize(1));

    public void Dispose() => monitor.Dispose();

    [Property(
        DisplayName = "Implants lie in the arena, each in one page, where the jump to it is as wanted, and none in another's bytes; each"
            + " reads back through the page tables",
        MaxTest = 40)]
    public void Reservations(int seed)
    {
        Random random = new(seed);
        Arena arena = new(monitor);
        List<(ulong Address, byte[] Code)> implants = [];
        for (int index = 0; index < 200; index++)
        {
            ulong origin = Text + (ulong)random.NextInt64((long)TextLength);
            int[] boundaries = Boundaries(random);
            DisplacementConstraint constraint = DisplacementConstraint.For(boundaries);
            byte[] code = new byte[random.Next(1, 300)];
            random.NextBytes(code);
            if (!arena.TryReserve(origin, constraint, code.Length, out ulong address))
            {
                // All four bytes may be impossible to reach; one or two never are.
                Assert.True(boundaries.Length > 2);
                continue;
            }

            arena.Write(address, code);
            Assert.InRange(address, MachineLayout.ArenaBase, MachineLayout.ArenaBase + MachineLayout.ArenaSize - (ulong)code.Length);
            Assert.Equal(address >> Paging.PageShift, (address + (ulong)code.Length - 1) >> Paging.PageShift);
            Assert.True(constraint.Allows(address - origin));
            implants.Add((address, code));
        }

        implants.Sort((one, other) => one.Address.CompareTo(other.Address));
        for (int index = 0; index < implants.Count; index++)
        {
            (ulong address, byte[] code) = implants[index];
            Assert.True(index + 1 == implants.Count || address + (ulong)code.Length <= implants[index + 1].Address);
            Assert.Equal(code, ArenaReader.Read(monitor, address, code.Length));
        }

        Assert.Equal(implants.Select(implant => implant.Address >> Paging.PageShift).Distinct().Count(), arena.PagesInUse);
    }

    [Fact(DisplayName = "What no implant lies in is a trap")]
    public void Filler()
    {
        Arena arena = new(monitor);
        Assert.True(arena.TryReserve(Text, default, 16, out ulong address));
        arena.Write(address, new byte[16]);
        ulong page = address & ~Paging.PageOffsetMask;
        byte[] expected = new byte[Paging.PageSize];
        expected.AsSpan().Fill(CodePages.Trap);
        expected.AsSpan((int)(address - page), 16).Clear();
        Assert.Equal(expected, ArenaReader.Read(monitor, page, Paging.PageSize));
    }

    [Fact(DisplayName = "A full arena refuses and stays as it is; what still fits into a page in use does")]
    public void Exhaustion()
    {
        Arena arena = new(monitor);
        for (int page = 0; page < MachineLayout.ArenaFrames; page++)
        {
            Assert.True(arena.TryReserve(Text, default, page == 7 ? Paging.PageSize - 8 : Paging.PageSize, out _));
        }

        Assert.False(arena.TryReserve(Text, default, 9, out ulong address));
        Assert.Equal(0UL, address);
        Assert.Equal(MachineLayout.ArenaFrames, arena.PagesInUse);
        Assert.True(arena.TryReserve(Text, default, 8, out _));
        Assert.False(arena.TryReserve(Text, default, 1, out _));
    }

    [Fact(DisplayName = "More than a page is refused")]
    public void Too_long() => Assert.False(new Arena(monitor).TryReserve(Text, default, Paging.PageSize + 1, out _));

    [Fact(DisplayName = "Where no jump reaches the arena there is a refusal")]
    public void Out_of_reach()
    {
        Arena arena = new(monitor);
        Assert.False(arena.TryReserve(0xFFFF_8880_0000_0000, default, 16, out _));
        Assert.False(arena.TryReserve(0x40_0000, default, 16, out _));
        Assert.Equal(0, arena.PagesInUse);
    }

    [Fact(DisplayName = "What was placed at a known address is nobody else's")]
    public void Placed()
    {
        Arena arena = new(monitor);
        ulong last = MachineLayout.ArenaBase + MachineLayout.ArenaSize - Paging.PageSize;
        arena.Place(last, 100);
        arena.Write(last, new byte[100]);
        Assert.True(arena.TryReserve(Text, default, 16, out ulong address));
        Assert.Equal(last + 100, address);
    }

    [Property(DisplayName = "A displacement is allowed when it reaches and each byte inside the window is an instruction that faults")]
    public void Allowed(int seed)
    {
        Random random = new(seed);
        int[] boundaries = Boundaries(random);
        DisplacementConstraint constraint = DisplacementConstraint.For([0, .. boundaries, 5, 6, 47]);
        byte[] bytes = new byte[4];
        random.NextBytes(bytes);
        foreach (int boundary in boundaries)
        {
            bytes[boundary - 1] = DisplacementConstraint.FaultingBytes[random.Next(DisplacementConstraint.FaultingBytes.Length)];
        }

        ulong displacement = (ulong)BitConverter.ToInt32(bytes);
        Assert.True(constraint.Allows(displacement));
        Assert.False(constraint.Allows(displacement ^ (1UL << 40)));
        Assert.Equal(boundaries.Length == 0, constraint.Allows(0x0101_0101));
        foreach (int boundary in boundaries)
        {
            Assert.False(constraint.Allows(displacement & ~(0xFFUL << (8 * (boundary - 1)))));
        }
    }

    [Property(DisplayName = "The next displacement that is allowed is the first of all from one on", MaxTest = 300)]
    public void Next(int seed)
    {
        Random random = new(seed);
        DisplacementConstraint constraint = DisplacementConstraint.For(Boundaries(random));
        ulong from = (ulong)(long)random.Next(int.MinValue, int.MaxValue);
        const int Looked = 1 << 18;
        int first = 0;
        while (first < Looked && !constraint.Allows(from + (ulong)first))
        {
            first++;
        }

        if (first < Looked)
        {
            Assert.True(constraint.TryFindNext(from, out ulong next));
            Assert.Equal(from + (ulong)first, next);
        }
        else if (constraint.TryFindNext(from, out ulong next))
        {
            Assert.True(constraint.Allows(next));
            Assert.True((long)next >= (long)from + Looked);
        }
    }

    [Fact(DisplayName = "A displacement beyond a jump's reach has none behind it that is allowed, or the first within reach")]
    public void Next_beyond()
    {
        DisplacementConstraint any = DisplacementConstraint.For([]);
        Assert.False(any.TryFindNext(1UL << 31, out _));
        Assert.True(any.TryFindNext(unchecked((ulong)(long.MinValue / 2)), out ulong next));
        Assert.Equal(int.MinValue, (long)next);

        // From a negative one on, nothing positive: the two are not in reach of the same jump's window.
        Assert.False(DisplacementConstraint.For([4]).TryFindNext(unchecked((ulong)-1L), out _));
    }

    private static int[] Boundaries(Random random) => [.. Enumerable.Range(1, 4).Where(_ => random.Next(3) == 0)];
}
