using Dmp.Kvm.Devices;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Devices;

public class BusSpecs
{
    [Fact(DisplayName = "Unowned ports read all ones of the size and are counted")]
    public void Unowned_ports()
    {
        PortBus bus = new();
        Assert.Equal(0xFFu, bus.Read(0x2E8, 1));
        Assert.Equal(0xFFFFu, bus.Read(0x2E8, 2));
        Assert.Equal(0xFFFF_FFFFu, bus.Read(0xFFFF, 4));
        bus.Write(0x2E8, 1, 3);
        List<UnownedPort> counts = [];
        bus.SnapshotUnowned(counts);
        Assert.Equal([new UnownedPort(0x2E8, 2, 1), new UnownedPort(0xFFFF, 1, 0)], counts);
    }

    [Fact(DisplayName = "An access that leaves the device or is wider than it understands is split into bytes")]
    public void Splits()
    {
        PortBus bus = new();
        RecordingDevice narrow = new() { Value = 0x12 };
        RecordingDevice wide = new() { Value = 0x3456 };
        bus.Register(0x10, 0x10, narrow);
        bus.Register(0x11, 0x12, wide, widest: 2);
        Assert.Equal(0xFF56_5612u, bus.Read(0x10, 4));
        bus.Write(0x11, 2, 0xABCD);
        bus.Write(0x10, 2, 0xABCD);
        Assert.Equal(["r1 10", "w1 10 cd"], narrow.Accesses);
        Assert.Equal(["r1 11", "r1 12", "w2 11 abcd", "w1 11 ab"], wide.Accesses);
    }

    [Fact(DisplayName = "Two devices cannot own one port, and the error names both")]
    public void Overlap()
    {
        Board board = new();
        ArgumentException error = Assert.Throws<ArgumentException>(
            () => board.Chipset.Ports.Register(0x3FF, 0x400, new RecordingDevice()));
        Assert.Contains("0x3ff", error.Message, StringComparison.Ordinal);
        Assert.Contains(nameof(Uart16550), error.Message, StringComparison.Ordinal);
        Assert.Contains(nameof(RecordingDevice), error.Message, StringComparison.Ordinal);
    }

    [Property(DisplayName = "An MMIO access reaches the window it lies in, and only if it lies in it whole")]
    public void Windows(uint address, byte sizeCode)
    {
        int size = 1 << (sizeCode % 4);
        address %= 0x6000;
        MmioBus bus = new();
        RecordingDevice low = new();
        RecordingDevice high = new();
        bus.Register(0x4000, 0x1000, high);
        bus.Register(0x1000, 0x800, low);
        bool inLow = address >= 0x1000 && address + size <= 0x1800;
        bool inHigh = address >= 0x4000 && address + size <= 0x5000;
        bus.Read(address, size);
        Assert.Equal(inLow ? 1 : 0, low.Accesses.Count);
        Assert.Equal(inHigh ? 1 : 0, high.Accesses.Count);
        Assert.Equal(inLow || inHigh ? 0 : 1, bus.UnownedReads);
    }

    [Fact(DisplayName = "Port access, MSR access and looking for interrupts allocate nothing")]
    public void Hot_paths_do_not_allocate()
    {
        Board board = new(2);
        board.Chipset.LocalApics[0].BindToCurrentThread();
        Exercise(board);
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 1000; i++)
        {
            Exercise(board);
        }

        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
    }

    private static void Exercise(Board board)
    {
        Chipset chipset = board.Chipset;
        chipset.Ports.Read(0x3FD, 1);
        chipset.Ports.Write(0x3F8, 1, 'a');
        chipset.Ports.Read(0x608, 4);
        chipset.Ports.Read(0x1234, 4);
        LocalApic apic = chipset.LocalApics[0];
        apic.TryWriteMsr(0x832, 0x400EC);
        apic.TryWriteMsr(0x6E0, board.Clock.Tsc + 1000);
        apic.TryWriteMsr(0x83F, 0xFD);
        apic.TryReadMsr(0x808, out _);
        if (chipset.InterruptPending(0) && chipset.TryAcknowledge(0, out _))
        {
            apic.TryWriteMsr(0x80B, 0);
        }

        chipset.RunDue(0, board.Clock.Nanoseconds);
    }
}
