using System.Numerics;

namespace Dmp.Kvm.Devices;

/// <summary>
/// A bounded queue of bytes between one producer and one consumer, without locks. <c>tail</c> is written by the producer only,
/// with release order after the byte; <c>head</c> by the consumer only, with release order after it has read the byte.
/// </summary>
internal sealed class ByteRing
{
    private readonly byte[] bytes;
    private readonly uint mask;
    private uint head;
    private uint tail;

    /// <param name="capacity">Bytes; a power of two.</param>
    public ByteRing(int capacity)
    {
        bytes = BitOperations.IsPow2(capacity)
            ? new byte[capacity]
            : throw new ArgumentOutOfRangeException(nameof(capacity), capacity, "Must be a power of two.");
        mask = (uint)capacity - 1;
    }

    /// <summary>Appends as many bytes as fit. Producer.</summary>
    /// <returns>Bytes appended.</returns>
    public int Put(ReadOnlySpan<byte> source)
    {
        uint free = (uint)bytes.Length - (tail - Volatile.Read(ref head));
        int count = (int)Math.Min(free, (uint)source.Length);
        for (int i = 0; i < count; i++)
        {
            bytes[(tail + (uint)i) & mask] = source[i];
        }

        Volatile.Write(ref tail, tail + (uint)count);
        return count;
    }

    /// <summary>Takes the oldest byte. Consumer.</summary>
    /// <returns>Whether there was one.</returns>
    public bool TryTake(out byte value)
    {
        if (head == Volatile.Read(ref tail))
        {
            value = 0;
            return false;
        }

        value = bytes[head & mask];
        Volatile.Write(ref head, head + 1);
        return true;
    }
}
