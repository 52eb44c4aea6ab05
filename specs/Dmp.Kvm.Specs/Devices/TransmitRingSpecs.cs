using Dmp.Kvm.Devices;
using Dmp.Kvm.Memory;
using FsCheck;
using FsCheck.Fluent;

namespace Dmp.Kvm.Specs.Devices;

public class TransmitRingSpecs
{
    private const int Vcpus = 3;
    private const int LongestSchedule = 3000;

    /// <summary>A turn of the device; below it, turns of the vCPUs.</summary>
    private const int Device = Vcpus;

    // The device's turns are as rare as a run wants them, so that the ring fills up in some.
    private static readonly Arbitrary<int[]> Schedules = (
        from rarity in Gen.Elements(2, 5, 50, LongestSchedule)
        from turns in Gen.ListOf(Gen.Choose(0, int.MaxValue))
        select turns.Select(turn => turn % rarity == 0 ? Device : turn % Vcpus).ToArray()).ToArbitrary();

    [Fact(DisplayName = "However vCPUs, the ring and the device interleave, each vCPU's bytes leave in order, and none is lost or doubled")]
    public void Interleavings() => Check.One(
        Config.QuickThrowOnFailure.WithMaxTest(1000).WithEndSize(LongestSchedule),
        Prop.ForAll(Schedules, schedule =>
        {
            DevicePage page = new();
            TransmitRing ring = new(page);
            List<byte> line = [];
            Writer[] writers = [.. Enumerable.Range(0, Vcpus).Select(index => new Writer(index, page, ring, line))];
            foreach (int turn in schedule)
            {
                if (turn == Device)
                {
                    Take(ring, line);
                }
                else
                {
                    writers[turn].Step();
                }
            }

            Take(ring, line);
            Assert.False(ring.HasBytes);
            foreach (Writer writer in writers)
            {
                Assert.Equal(writer.Written, line.Where(writer.IsMine));
            }
        }));

    [Fact(DisplayName = "A ring that nobody empties takes what fits, and goes on after it was emptied")]
    public void Full()
    {
        DevicePage page = new();
        page[DevicePageField.TransmitPort] = 1;
        TransmitRing ring = new(page);
        RingProducer producer = new(page);
        List<byte> line = [];
        for (int lap = 0; lap < 5; lap++)
        {
            int taken = 0;
            while (producer.TryOut(1, (byte)taken))
            {
                taken++;
            }

            Assert.Equal(DevicePage.RingEntries, taken);
            Assert.True(ring.HasBytes);
            Take(ring, line);
            Assert.Equal(Enumerable.Range(0, taken).Select(value => (byte)value), line);
            line.Clear();
        }
    }

    [Fact(DisplayName = "A guest that writes anything into the page makes the device neither loop nor fail")]
    public void Scribbled() => Check.One(
        Config.QuickThrowOnFailure.WithMaxTest(500),
        Prop.ForAll(ArbMap.Default.ArbFor<int>(), seed =>
        {
            Random random = new(seed);
            DevicePage page = new();
            SerialConsole console = new();
            Uart16550 uart = new(0x3F8, console, console, _ => { });
            uart.Offer(page);
            for (int field = 0; field < (int)DevicePageField.Count; field++)
            {
                if (random.Next(2) == 0)
                {
                    page[(DevicePageField)field] = (ulong)random.NextInt64();
                }
            }

            byte[] buffer = new byte[4096];
            uart.PutOutTransmitted();
            uart.Write(0x3F8, 1, 'x');
            Assert.InRange(console.TakeOutput(buffer), 1, DevicePage.RingEntries + 1);
        }));

    [Fact(DisplayName = "Threads that write at once, against one that takes, lose nothing")]
    public async Task Threads()
    {
        const int Count = 200_000;
        DevicePage page = new();
        page[DevicePageField.TransmitPort] = 1;
        TransmitRing ring = new(page);
        Lock gate = new();
        List<byte> line = new(Vcpus * Count);
        Task[] writers = [.. Enumerable.Range(0, Vcpus - 1).Select(index => Task.Run(() =>
        {
            RingProducer producer = new(page);
            for (int number = 0; number < Count; number++)
            {
                byte value = Writer.Byte(index, number);
                if (!producer.TryOut(1, value))
                {
                    lock (gate)
                    {
                        Take(ring, line);
                        line.Add(value);
                    }
                }
            }
        }))];
        await Task.WhenAll(writers);
        Take(ring, line);
        for (int index = 0; index < Vcpus - 1; index++)
        {
            byte[] mine = [.. line.Where(value => Writer.IsOf(index, value))];
            Assert.Equal(Count, mine.Length);
            Assert.True(mine.Select((value, number) => value == Writer.Byte(index, number)).All(same => same));
        }
    }

    // As the device does: never more than the ring holds at a time.
    private static void Take(TransmitRing ring, List<byte> line)
    {
        for (int count = 0; count < DevicePage.RingEntries && ring.TryTake(out byte value); count++)
        {
            line.Add(value);
        }
    }

    /// <summary>A vCPU that writes its own numbers, through the ring or, where that does not work, through the device.</summary>
    private sealed class Writer(int index, DevicePage page, TransmitRing ring, List<byte> line)
    {
        private const int Shift = 6;

        private readonly RingProducer producer = new(page);
        private int step;

        public List<byte> Written { get; } = [];

        public static byte Byte(int index, int number) => (byte)((index << Shift) | (number & ((1 << Shift) - 1)));

        public static bool IsOf(int index, byte value) => value >> Shift == index;

        public bool IsMine(byte value) => IsOf(index, value);

        public void Step()
        {
            switch (step)
            {
                case 0:
                    producer.ReadTail();
                    step = 1;
                    break;
                case 1:
                    byte value = Byte(index, Written.Count);
                    Written.Add(value);
                    bool inRing = producer.Exchange(value);
                    step = inRing ? 2 : 0;
                    if (!inRing)
                    {
                        Take(ring, line);
                        line.Add(value);
                    }

                    break;
                default:
                    producer.WriteTail();
                    step = 0;
                    break;
            }
        }
    }
}
