namespace Dmp.Kvm.Devices;

/// <summary>
/// An unbounded queue of bytes between one producer, which never waits and never loses a byte, and one consumer. The bytes stand in
/// a chain of segments; the consumer hands one used-up segment back, so that a consumer that keeps up costs no allocation at all.
/// <para>
/// Order: a segment's <c>Written</c> is released after the byte, <c>Next</c> after the segment's last byte; the consumer leaves a
/// segment only when it has read all of it and seen <c>Next</c>, and does not touch it again after it put it into <c>spare</c>.
/// </para>
/// </summary>
internal sealed class OutputChain
{
    private const int SegmentSize = 64 << 10;

    private Segment last = new();
    private Segment first;
    private int taken;
    private Segment? spare;

    public OutputChain() => first = last;

    /// <summary>Whether there is something to take. Consumer.</summary>
    public bool HasBytes => taken < Volatile.Read(ref first.Written) || Volatile.Read(ref first.Next) is not null;

    /// <summary>Appends a byte. Producer.</summary>
    public void Put(byte value)
    {
        Segment segment = last;
        if (segment.Written == SegmentSize)
        {
            segment = Interlocked.Exchange(ref spare, null) ?? new Segment();
            segment.Bytes[0] = value;
            segment.Written = 1;
            Volatile.Write(ref last.Next, segment);
            last = segment;
            return;
        }

        segment.Bytes[segment.Written] = value;
        Volatile.Write(ref segment.Written, segment.Written + 1);
    }

    /// <summary>Takes bytes in order. Consumer.</summary>
    /// <returns>Bytes taken.</returns>
    public int Take(Span<byte> destination)
    {
        int count = 0;
        while (count < destination.Length)
        {
            int available = Volatile.Read(ref first.Written) - taken;
            if (available > 0)
            {
                int chunk = Math.Min(available, destination.Length - count);
                first.Bytes.AsSpan(taken, chunk).CopyTo(destination[count..]);
                taken += chunk;
                count += chunk;
            }
            else if (taken == SegmentSize && Volatile.Read(ref first.Next) is { } next)
            {
                Segment used = first;
                first = next;
                taken = 0;
                used.Next = null;
                used.Written = 0;
                Volatile.Write(ref spare, used);
            }
            else
            {
                break;
            }
        }

        return count;
    }

    private sealed class Segment
    {
        public readonly byte[] Bytes = new byte[SegmentSize];
        public int Written;
        public Segment? Next;
    }
}
