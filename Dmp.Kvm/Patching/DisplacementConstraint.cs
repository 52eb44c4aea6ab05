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
    private const int PageNibbleByte = 1;
    private const int LowNibbleMask = 0xF;

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

    /// <summary>Whether a page may hold such an implant, going by the displacement to its first byte.</summary>
    internal bool AllowsPage(ulong displacement)
    {
        // The page's displacements lie in a range of 4 KiB that need not be aligned: some one of them must be allowed.
        ulong last = displacement + Paging.PageOffsetMask;
        return AllowsUpper(displacement) || AllowsUpper(last);
    }

    /// <summary>The pages of a range that may hold such an implant, nearest to its end first.</summary>
    /// <param name="origin">Where displacements count from.</param>
    /// <param name="start">First page of the range.</param>
    /// <param name="size">Bytes of the range.</param>
    internal IEnumerable<ulong> Pages(ulong origin, ulong start, ulong size)
    {
        for (ulong page = start + size - Paging.PageSize; page >= start; page -= Paging.PageSize)
        {
            if (AllowsPage(page - origin))
            {
                yield return page;
            }
        }
    }

    private bool AllowsUpper(ulong displacement)
    {
        byte nibble = (byte)((displacement >> (BitsPerByte * PageNibbleByte)) & ~(ulong)LowNibbleMask);
        return (!IsConstrained(3) || FaultingBytes.Contains((byte)(displacement >> (BitsPerByte * 3))))
            && (!IsConstrained(2) || FaultingBytes.Contains((byte)(displacement >> (BitsPerByte * 2))))
            && (!IsConstrained(PageNibbleByte) || HasNibble(nibble));
    }

    private static bool HasNibble(byte nibble)
    {
        foreach (byte candidate in FaultingBytes)
        {
            if ((candidate & ~LowNibbleMask) == nibble)
            {
                return true;
            }
        }

        return false;
    }

    private bool IsConstrained(int index) => (constrained & (1 << index)) != 0;
}
