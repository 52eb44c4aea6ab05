using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Patching;

/// <summary>
/// Which 32-bit displacements the jump of a patch may have. A saved RIP may point to the second or a later instruction of a window whose
/// first five bytes are now a jump; so the byte of the displacement that stands there must be an instruction of its own, one that faults
/// at CPL 3. Then such a RIP never runs half a jump: it faults, and goes on at the same instruction in the implant. Pure.
/// </summary>
internal readonly struct DisplacementConstraint
{
    private const int Bytes = sizeof(int);
    private const int BitsPerByte = 8;

    private readonly byte constrained;

    private DisplacementConstraint(byte constrained) => this.constrained = constrained;

    /// <summary>
    /// One-byte instructions that fault at CPL 3 whatever follows them, without a port in the TSS's bitmap and with IOPL 0: HLT, CLI,
    /// STI, IN, OUT, INS, OUTS (AMD APM vol. 3).
    /// </summary>
    internal static ReadOnlySpan<byte> FaultingBytes => [0xF4, 0xFA, 0xFB, 0xEC, 0xED, 0xEE, 0xEF, 0x6C, 0x6D, 0x6E, 0x6F];

    /// <summary>The constraint for instructions that begin at these offsets of the window.</summary>
    /// <param name="boundaries">Offsets from the window's start; 0 and those beyond the jump are ignored.</param>
    internal static DisplacementConstraint For(ReadOnlySpan<int> boundaries)
    {
        int mask = 0;
        foreach (int boundary in boundaries)
        {
            if (boundary is > 0 and <= Bytes)
            {
                mask |= 1 << (boundary - 1);
            }
        }

        return new DisplacementConstraint((byte)mask);
    }

    /// <summary>Whether a displacement (modulo 2^64) reaches and has the bytes that are wanted.</summary>
    internal bool Allows(ulong displacement)
    {
        if ((ulong)(int)displacement != displacement)
        {
            return false;
        }

        for (int index = 0; index < Bytes; index++)
        {
            if (IsConstrained(index) && !FaultingBytes.Contains((byte)(displacement >> (BitsPerByte * index))))
            {
                return false;
            }
        }

        return true;
    }

    /// <summary>Finds the lowest displacement that is allowed, from one on; from a negative one on, the lowest negative one.</summary>
    /// <param name="displacement">The first to be looked at (modulo 2^64); may be out of a jump's reach.</param>
    /// <param name="next">The one that is allowed.</param>
    /// <returns>Whether there is one.</returns>
    internal bool TryFindNext(ulong displacement, out ulong next)
    {
        next = displacement;
        if ((long)displacement > int.MaxValue)
        {
            return false;
        }

        // The bytes from the highest on: what is below one that was raised begins again.
        ulong bits = (uint)Math.Max((long)displacement, int.MinValue);
        for (int index = Bytes - 1; index >= 0; index--)
        {
            if (!IsConstrained(index))
            {
                continue;
            }

            int shift = BitsPerByte * index;
            int wanted = FirstFaulting((byte)(bits >> shift));
            if (wanted == (byte)(bits >> shift))
            {
                continue;
            }

            // Without a byte as high as this one: the byte above counts up, and is looked at again.
            ulong above = bits >> shift >> BitsPerByte;
            bits = wanted < 0 ? (above + 1) << shift << BitsPerByte : ((above << BitsPerByte) | (byte)wanted) << shift;
            if (bits > uint.MaxValue)
            {
                return false;
            }

            index = wanted < 0 ? Bytes : index;
        }

        next = (ulong)(int)(uint)bits;
        return (long)displacement < 0 == (long)next < 0;
    }

    /// <summary>The lowest byte of <see cref="FaultingBytes"/> that is not below one; -1 when there is none.</summary>
    private static int FirstFaulting(byte least)
    {
        int first = -1;
        foreach (byte candidate in FaultingBytes)
        {
            if (candidate >= least && (first < 0 || candidate < first))
            {
                first = candidate;
            }
        }

        return first;
    }

    private bool IsConstrained(int index) => (constrained & (1 << index)) != 0;
}
