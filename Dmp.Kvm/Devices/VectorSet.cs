using System.Numerics;

namespace Dmp.Kvm.Devices;

/// <summary>
/// A 256-bit register of vectors (IRR, ISR, TMR). Bits change by interlocked operations, which are full barriers: what was written
/// before a bit was set is seen by whoever sees the bit.
/// </summary>
internal sealed class VectorSet
{
    /// <summary>What <see cref="Highest"/> returns for an empty set.</summary>
    public const int None = -1;

    private const int WordBits = 64;
    private const int WordShift = 6;
    private const int RegisterBits = 32;

    private readonly ulong[] words = new ulong[(byte.MaxValue + 1) / WordBits];

    /// <summary>Adds a vector. Any thread.</summary>
    /// <returns>Whether it was not there.</returns>
    public bool Set(byte vector) => (Interlocked.Or(ref words[vector >> WordShift], Bit(vector)) & Bit(vector)) == 0;

    /// <summary>Removes a vector. Any thread.</summary>
    public void Clear(byte vector) => Interlocked.And(ref words[vector >> WordShift], ~Bit(vector));

    /// <summary>Whether it has a vector. Any thread.</summary>
    public bool Has(byte vector) => (Volatile.Read(ref words[vector >> WordShift]) & Bit(vector)) != 0;

    /// <summary>The highest vector, or <see cref="None"/>. Any thread.</summary>
    public int Highest()
    {
        for (int i = words.Length - 1; i >= 0; i--)
        {
            ulong word = Volatile.Read(ref words[i]);
            if (word != 0)
            {
                return (i * WordBits) + BitOperations.Log2(word);
            }
        }

        return None;
    }

    /// <summary>The highest vector below one, or <see cref="None"/>. Any thread.</summary>
    public int HighestBelow(byte limit)
    {
        ulong below = Bit(limit) - 1;
        for (int i = limit >> WordShift; i >= 0; i--)
        {
            ulong word = Volatile.Read(ref words[i]) & below;
            if (word != 0)
            {
                return (i * WordBits) + BitOperations.Log2(word);
            }

            below = ulong.MaxValue;
        }

        return None;
    }

    /// <summary>One of the eight 32-bit registers the guest reads. Any thread.</summary>
    public uint Register(int index) =>
        (uint)(Volatile.Read(ref words[index / 2]) >> (index % 2 * RegisterBits));

    /// <summary>Removes all. Any thread.</summary>
    public void Clear()
    {
        for (int i = 0; i < words.Length; i++)
        {
            Interlocked.Exchange(ref words[i], 0);
        }
    }

    private static ulong Bit(byte vector) => 1UL << (vector & (WordBits - 1));
}
