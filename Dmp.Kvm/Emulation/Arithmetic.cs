using System.Numerics;
using Dmp.Kvm.Cpu;
using Iced.Intel;

namespace Dmp.Kvm.Emulation;

/// <summary>
/// The integer instructions that compilers make of <c>register |= bit</c> and the like, on values (Intel SDM vol. 1, 3.4.3.1; vol. 2). Pure.
/// </summary>
internal static class Arithmetic
{
    private const int BitsPerByte = 8;
    private const Rflags OfBits = Rflags.Carry;
    private const Rflags OfSteps = Rflags.Parity | Rflags.Adjust | Rflags.Zero | Rflags.Sign | Rflags.Overflow;
    private const Rflags OfSums = OfSteps | Rflags.Carry;

    /// <summary>Whether it executes an instruction.</summary>
    /// <param name="mnemonic">Which one.</param>
    internal static bool Knows(Mnemonic mnemonic) =>
        IsOfBits(mnemonic)
        || mnemonic is Mnemonic.And or Mnemonic.Or or Mnemonic.Xor or Mnemonic.Test or Mnemonic.Add or Mnemonic.Adc or Mnemonic.Inc
            or Mnemonic.Sub or Mnemonic.Sbb or Mnemonic.Cmp or Mnemonic.Dec or Mnemonic.Neg or Mnemonic.Not;

    /// <summary>Whether its second operand is the number of a bit.</summary>
    /// <param name="mnemonic">Which one.</param>
    internal static bool IsOfBits(Mnemonic mnemonic) => mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc;

    /// <summary>Whether it changes flags and nothing else.</summary>
    /// <param name="mnemonic">Which one.</param>
    internal static bool OnlyTests(Mnemonic mnemonic) => mnemonic is Mnemonic.Test or Mnemonic.Cmp or Mnemonic.Bt;

    /// <summary>Executes an instruction on its operands.</summary>
    /// <param name="mnemonic">Which one; it <see cref="Knows"/> it.</param>
    /// <param name="first">First operand; what the result goes to.</param>
    /// <param name="second">Second operand, sign-extended if it is an immediate; for bit instructions the number of the bit.</param>
    /// <param name="size">Size of the operands in bytes.</param>
    /// <param name="flags">RFLAGS; changed as the instruction changes them. What it leaves undefined is zero, or stays.</param>
    /// <returns>The result; the first operand when it <see cref="OnlyTests"/>.</returns>
    internal static ulong Compute(Mnemonic mnemonic, ulong first, ulong second, int size, ref ulong flags)
    {
        int width = size * BitsPerByte;
        ulong mask = ulong.MaxValue >> (64 - width);
        first &= mask;
        ulong carry = (flags & (ulong)Rflags.Carry) != 0 ? 1UL : 0;
        ulong bit = 1UL << (int)(second & (ulong)(width - 1));
        second &= mask;
        switch (mnemonic)
        {
            case Mnemonic.And:
                return Logic(first & second, ref flags);
            case Mnemonic.Or:
                return Logic(first | second, ref flags);
            case Mnemonic.Xor:
                return Logic(first ^ second, ref flags);
            case Mnemonic.Test:
                _ = Logic(first & second, ref flags);
                return first;
            case Mnemonic.Add:
                return Sum(first, second, 0, OfSums, ref flags);
            case Mnemonic.Adc:
                return Sum(first, second, carry, OfSums, ref flags);
            case Mnemonic.Inc:
                return Sum(first, 1, 0, OfSteps, ref flags);
            case Mnemonic.Sub:
                return Difference(first, second, 0, OfSums, ref flags);
            case Mnemonic.Sbb:
                return Difference(first, second, carry, OfSums, ref flags);
            case Mnemonic.Cmp:
                _ = Difference(first, second, 0, OfSums, ref flags);
                return first;
            case Mnemonic.Dec:
                return Difference(first, 1, 0, OfSteps, ref flags);
            case Mnemonic.Neg:
                return Difference(0, first, 0, OfSums, ref flags);
            case Mnemonic.Not:
                return ~first & mask;
            case Mnemonic.Bt:
                return Bit(first, ref flags);
            case Mnemonic.Bts:
                return Bit(first | bit, ref flags);
            case Mnemonic.Btr:
                return Bit(first & ~bit, ref flags);
            case Mnemonic.Btc:
                return Bit(first ^ bit, ref flags);
            default:
                throw new ArgumentOutOfRangeException(nameof(mnemonic), mnemonic, "not an instruction that is emulated");
        }

        ulong Logic(ulong result, ref ulong flags)
        {
            Set(ref flags, OfSums, OfResult(result, width));
            return result;
        }

        // The carries out of each position are where the operands and the sum do not fit together (Hacker's Delight, 2-13).
        ulong Sum(ulong left, ulong right, ulong carryIn, Rflags changed, ref ulong flags)
        {
            ulong result = (left + right + carryIn) & mask;
            ulong carries = (left & right) | ((left | right) & ~result);
            Set(ref flags, changed, OfResult(result, width) | OfCarries(carries, (left ^ result) & (right ^ result)));
            return result;
        }

        ulong Difference(ulong left, ulong right, ulong borrowIn, Rflags changed, ref ulong flags)
        {
            ulong result = (left - right - borrowIn) & mask;
            ulong borrows = (~left & right) | (~(left ^ right) & result);
            Set(ref flags, changed, OfResult(result, width) | OfCarries(borrows, (left ^ right) & (left ^ result)));
            return result;
        }

        ulong Bit(ulong result, ref ulong flags)
        {
            Set(ref flags, OfBits, (first & bit) != 0 ? Rflags.Carry : Rflags.None);
            return result;
        }

        Rflags OfCarries(ulong carries, ulong overflow)
        {
            const int AdjustPosition = 3;
            return (IsSet(carries, width - 1) ? Rflags.Carry : Rflags.None)
                | (IsSet(carries, AdjustPosition) ? Rflags.Adjust : Rflags.None)
                | (IsSet(overflow, width - 1) ? Rflags.Overflow : Rflags.None);
        }
    }

    private static Rflags OfResult(ulong result, int width) =>
        (result == 0 ? Rflags.Zero : Rflags.None)
        | (IsSet(result, width - 1) ? Rflags.Sign : Rflags.None)
        | (BitOperations.PopCount((byte)result) % 2 == 0 ? Rflags.Parity : Rflags.None);

    private static bool IsSet(ulong value, int position) => ((value >> position) & 1) != 0;

    private static void Set(ref ulong flags, Rflags changed, Rflags values) =>
        flags = (flags & ~(ulong)changed) | (ulong)(values & changed);
}
