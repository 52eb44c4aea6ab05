using Dmp.Kvm.Cpu;
using FsCheck;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Cpu;

public class WakeClockSpecs
{
    private readonly WakeClock clock = new();

    [Fact(DisplayName = "A wake takes from what ended the halt to guest code; the halt lasts until then")]
    public void Wake()
    {
        clock.Halt(1_000);
        clock.Wake(5_000);
        clock.Run(5_300);
        Assert.Equal((4_300, 1, 300), (clock.HaltedNanoseconds, clock.Wakes.Count, clock.Wakes.Max));
    }

    [Fact(DisplayName = "Of several that wake a vCPU the first counts, and none from before its halt")]
    public void First_wake()
    {
        clock.Wake(500);
        clock.Halt(1_000);
        clock.Wake(5_000);
        clock.Wake(5_200);
        clock.Run(5_300);
        Assert.Equal(300, clock.Wakes.Max);
    }

    [Fact(DisplayName = "A halt that a pause ends is a halt, but nobody's wake; entries without a halt are neither")]
    public void Pause()
    {
        clock.Run(500);
        clock.Halt(1_000);
        clock.Run(3_000);
        clock.Run(9_000);
        Assert.Equal((2_000, 0), (clock.HaltedNanoseconds, clock.Wakes.Count));
    }

    [Property(DisplayName = "A percentile is at least the time of its rank, and exceeds it by no more than a sixteenth")]
    public void Percentiles(int seed, PositiveInt count, byte share)
    {
        // Times of all magnitudes, from below one bucket's width to above 100 s.
        const int MostBits = 38;
        var random = new Random(seed);
        int percent = (share % 100) + 1;
        var histogram = new LatencyHistogram();
        long[] times = [.. Enumerable.Range(0, count.Get).Select(_ => random.NextInt64(1L << random.Next(MostBits)))];
        foreach (long time in times)
        {
            histogram.Record(time);
        }

        Array.Sort(times);
        long exact = times[(int)Math.Ceiling(times.Length * (percent / 100.0)) - 1];
        Assert.InRange(histogram.Percentile(percent / 100.0), exact, exact + (exact / 16));
        Assert.Equal((times.Length, times[^1]), (histogram.Count, histogram.Max));
    }

    [Fact(DisplayName = "Times beyond all buckets, and those that two clocks make negative, are counted")]
    public void Extremes()
    {
        var histogram = new LatencyHistogram();
        Assert.Equal(0, histogram.Percentile(0.5));
        histogram.Record(-5);
        histogram.Record(long.MaxValue);
        Assert.Equal((2, 0, long.MaxValue), (histogram.Count, histogram.Percentile(0.5), histogram.Percentile(0.99)));
        _ = Assert.Throws<ArgumentOutOfRangeException>(() => histogram.Percentile(0));
    }
}
