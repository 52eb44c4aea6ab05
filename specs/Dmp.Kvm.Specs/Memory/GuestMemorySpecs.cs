using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.Memory;

public sealed class GuestMemorySpecs
{
    private const ulong MiB = 1UL << 20;
    private const ulong GiB = 1UL << 30;

    [Fact(DisplayName = "Up to 3 GiB RAM is one range")]
    public void One_range()
    {
        using GuestMemory memory = GuestMemory.Create(3 * GiB);
        Assert.Equal([new GuestRamRange(new(0), 3 * GiB)], memory.Ranges);
        Assert.Equal(3 * GiB / Paging.PageSize, memory.FrameLimit);
        Assert.False(memory.Contains(new(4 * GiB), 1));
    }

    [Fact(DisplayName = "What does not fit below the device hole begins at 4 GiB")]
    public void Two_ranges()
    {
        using GuestMemory memory = GuestMemory.Create(4 * GiB);
        Assert.Equal([new GuestRamRange(new(0), 3 * GiB), new GuestRamRange(new(4 * GiB), GiB)], memory.Ranges);
        Assert.Equal(5 * GiB / Paging.PageSize, memory.FrameLimit);
        Assert.Equal(4 * GiB, memory.Size);
    }

    [Theory(DisplayName = "Ranges end at the hole and at the end of RAM")]
    [InlineData(0, 1, true)]
    [InlineData((3 * GiB) - 1, 1, true)]
    [InlineData((3 * GiB) - 8, 9, false)]
    [InlineData(3 * GiB, 1, false)]
    [InlineData((4 * GiB) - 1, 2, false)]
    [InlineData(4 * GiB, 1, true)]
    [InlineData((5 * GiB) - 8, 8, true)]
    [InlineData((5 * GiB) - 8, 9, false)]
    [InlineData(5 * GiB, 0, false)]
    [InlineData(4 * GiB, GiB, true)]
    [InlineData(0, 4 * GiB, false)]
    [InlineData(ulong.MaxValue, 1, false)]
    [InlineData(1, ulong.MaxValue, false)]
    [InlineData((4 * GiB) + 1, ulong.MaxValue, false)]
    public void Bounds(ulong address, ulong length, bool expected)
    {
        using GuestMemory memory = GuestMemory.Create(4 * GiB);
        Assert.Equal(expected, memory.Contains(new(address), length));
        if (length == 1)
        {
            Assert.Equal(expected, memory.TryToMachine(new(address), out MachineAddress machine));
            Assert.Equal(address, machine.Value);
        }
    }

    [Fact(DisplayName = "Low and high RAM are different bytes, reached by slice, word and value alike")]
    public void Bytes()
    {
        using GuestMemory memory = GuestMemory.Create(4 * GiB);
        memory.Word(new((3 * GiB) - 8)) = 1;
        memory.Word(new(4 * GiB)) = 2;
        memory.Write(new((5 * GiB) - 4), 0x0403_0201u);
        Assert.Equal(1, memory.Slice(new((3 * GiB) - 8), 1)[0]);
        Assert.Equal(2, memory.Slice(new(4 * GiB), 1)[0]);
        Assert.Equal([1, 2, 3, 4], memory.Slice(new((5 * GiB) - 4), 4).ToArray());
        Assert.Equal(0x0403_0201u, memory.Read<uint>(new((5 * GiB) - 4)));
        Assert.Equal(0UL, memory.Word(new(0)));
    }

    [Theory(DisplayName = "An access outside RAM fails with the address in the message")]
    [InlineData((4 * MiB) - 4, "0x3ffffc")]
    [InlineData(4 * MiB, "0x400000")]
    [InlineData(3 * GiB, "0xc0000000")]
    [InlineData(ulong.MaxValue - 7, "0xfffffffffffffff8")]
    public void Errors(ulong address, string text)
    {
        using GuestMemory memory = GuestMemory.Create(4 * MiB);
        foreach (Action attempt in new Action[]
        {
            () => memory.Word(new(address)) = 1,
            () => memory.Slice(new(address), 8)[0] = 1,
            () => memory.Read<ulong>(new(address)),
            () => memory.Write(new(address), 1UL),
        })
        {
            GuestMemoryException error = Assert.Throws<GuestMemoryException>(attempt);
            Assert.Equal(address, error.Address.Value);
            Assert.Contains(text, error.Message, StringComparison.Ordinal);
            Assert.Contains("4 MiB", error.Message, StringComparison.Ordinal);
        }
    }

    [Theory(DisplayName = "Sizes that are none are refused")]
    [InlineData(0)]
    [InlineData(MiB)]
    [InlineData((2 * MiB) + 4096)]
    [InlineData((32 * GiB) + (2 * MiB))]
    public void Sizes(ulong size) => Assert.Throws<ArgumentOutOfRangeException>(() => GuestMemory.Create(size));

    [Fact(DisplayName = "Negative lengths are refused, and nothing is reached after disposal")]
    public void Refusals()
    {
        GuestMemory memory = GuestMemory.Create(2 * MiB);
        Assert.Throws<ArgumentOutOfRangeException>(() => memory.Slice(new(0), -1).Length);
        memory.Dispose();
        memory.Dispose();
        Assert.Throws<ArgumentOutOfRangeException>(() => memory.Word(new(0)));
    }
}
