using System.Numerics;

namespace Dmp.Kvm.Cpu;

/// <summary>
/// How often something took how long, in buckets that are at most a sixteenth of their time wide. One writer, any readers: counters are
/// written with ordinary 8-byte stores (single-copy atomic on x86-64). No locks, no allocation after construction.
/// </summary>
public sealed class LatencyHistogram
{
    // A power of two is divided into this many buckets; times below it have one each.
    private const int Steps = 1 << StepBits;
    private const int StepBits = 4;

    // Longer than any wait for something that is to happen at once: 2^40 ns are 18 minutes. What is longer is in the last bucket.
    private const int TopBit = 40;

    private readonly long[] counts = new long[(TopBit - StepBits + 1) << StepBits];
    private long count;
    private long max;

    /// <summary>How many times were recorded.</summary>
    public long Count => Volatile.Read(ref count);

    /// <summary>The longest, in nanoseconds.</summary>
    public long Max => Volatile.Read(ref max);

    /// <summary>Records a time. Only on the writer's thread.</summary>
    /// <param name="nanoseconds">The time; a negative one, which two clocks can produce, counts as none.</param>
    public void Record(long nanoseconds)
    {
        long time = Math.Max(nanoseconds, 0);
        counts[BucketOf(time)]++;
        if (time > max)
        {
            max = time;
        }

        Volatile.Write(ref count, count + 1);
    }

    /// <summary>The time that a share of all times does not exceed, as the upper end of its bucket; 0 without any.</summary>
    /// <param name="share">The share, above 0 and up to 1: 0.5 is the median.</param>
    public long Percentile(double share)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(share);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(share, 1);
        long rank = (long)Math.Ceiling(Count * share);
        long below = 0;
        for (int bucket = 0; bucket < counts.Length - 1 && rank > 0; bucket++)
        {
            below += Volatile.Read(ref counts[bucket]);
            if (below >= rank)
            {
                return Math.Min(TopOf(bucket), Max);
            }
        }

        return Max;
    }

    private static int BucketOf(long time)
    {
        if (time < Steps)
        {
            return (int)time;
        }

        int power = BitOperations.Log2((ulong)time);
        return power >= TopBit
            ? ((TopBit - StepBits + 1) << StepBits) - 1
            : ((power - StepBits + 1) << StepBits) + (int)((time >> (power - StepBits)) & (Steps - 1));
    }

    private static long TopOf(int bucket)
    {
        if (bucket < Steps)
        {
            return bucket;
        }

        int shift = (bucket >> StepBits) - 1;
        return ((long)(Steps + (bucket & (Steps - 1)) + 1) << shift) - 1;
    }
}
