using Dmp.Kvm.Cpu;
using Dmp.Kvm.Emulation;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Specs.Machine;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Emulation;

/// <summary>What is computed against what this machine's processor computes.</summary>
public class ArithmeticSpecs
{
    private const ulong Flags = (ulong)(Rflags.Carry | Rflags.Parity | Rflags.Adjust | Rflags.Zero | Rflags.Sign | Rflags.Overflow);
    private const int States = 2000;

    private static readonly Mnemonic[] Binary =
    [
        Mnemonic.And, Mnemonic.Or, Mnemonic.Xor, Mnemonic.Test, Mnemonic.Add, Mnemonic.Adc, Mnemonic.Sub, Mnemonic.Sbb, Mnemonic.Cmp,
    ];

    private static readonly Mnemonic[] Unary = [Mnemonic.Inc, Mnemonic.Dec, Mnemonic.Neg, Mnemonic.Not];

    private static readonly Mnemonic[] Bits = [Mnemonic.Bt, Mnemonic.Bts, Mnemonic.Btr, Mnemonic.Btc];

    public static TheoryData<Mnemonic, int> Instructions()
    {
        var data = new TheoryData<Mnemonic, int>();
        foreach (Mnemonic mnemonic in Enum.GetValues<Mnemonic>().Where(Arithmetic.Knows))
        {
            foreach (int size in (int[])[1, 2, 4, 8])
            {
                if (size > 1 || !Bits.Contains(mnemonic))
                {
                    data.Add(mnemonic, size);
                }
            }
        }

        return data;
    }

    [Fact(DisplayName = "The instructions that are emulated are the ones that are compared with the processor's")]
    public void All() =>
        Assert.Equal([.. Binary.Union(Unary).Union(Bits).Order()], Enum.GetValues<Mnemonic>().Where(Arithmetic.Knows).Order());

    [Theory(DisplayName = "Results and flags are the processor's")]
    [MemberData(nameof(Instructions))]
    public void Same(Mnemonic mnemonic, int size)
    {
        using var native = new NativeInstruction(Instruction(mnemonic, size));
        var random = new Random(HashCode.Combine((int)mnemonic, size));
        ulong mask = ulong.MaxValue >> (64 - (size * 8));
        ulong undefined = Undefined(mnemonic);
        for (int state = 0; state < States; state++)
        {
            ulong first = Value(random);
            ulong second = Value(random);
            ulong before = ((ulong)random.Next() & Flags) | (ulong)Rflags.AlwaysOne;
            (ulong expected, ulong after) = native.Execute(first, second, before);

            ulong flags = before;
            ulong result = Arithmetic.Compute(mnemonic, first, second, size, ref flags);

            Assert.True(
                (expected & mask) == result && ((after ^ flags) & Flags & ~undefined) == 0,
                $"{mnemonic} of {size} bytes, {first:x} and {second:x}, flags {before:x}: {result:x} and flags {flags:x}, "
                + $"the processor has {expected & mask:x} and {after:x}");
            Assert.Equal(before & ~Flags, flags & ~Flags);
        }
    }

    private static ulong Undefined(Mnemonic mnemonic) => (ulong)(mnemonic switch
    {
        Mnemonic.And or Mnemonic.Or or Mnemonic.Xor or Mnemonic.Test => Rflags.Adjust,
        Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc => Rflags.Parity | Rflags.Adjust | Rflags.Sign | Rflags.Overflow,
        _ => Rflags.None,
    });

    /// <summary>Random bits, or one of the values at which flags change.</summary>
    private static ulong Value(Random random)
    {
        ulong value = (ulong)random.NextInt64(long.MinValue, long.MaxValue);
        return random.Next(4) switch
        {
            0 => (ulong)(long)random.Next(-2, 3),
            1 => (1UL << random.Next(64)) + (ulong)(long)random.Next(-1, 2),
            2 => value & 0x0F0F_0F0F_0F0F_0F0F,
            _ => value,
        };
    }

    private static Instruction Instruction(Mnemonic mnemonic, int size)
    {
        int bits = size * 8;
        (Register first, Register second) = size switch
        {
            1 => (Register.AL, Register.SIL),
            2 => (Register.AX, Register.SI),
            4 => (Register.EAX, Register.ESI),
            _ => (Register.RAX, Register.RSI),
        };
        return Unary.Contains(mnemonic)
            ? Iced.Intel.Instruction.Create(Enum.Parse<Code>($"{mnemonic}_rm{bits}"), first)
            : Iced.Intel.Instruction.Create(Enum.Parse<Code>($"{mnemonic}_rm{bits}_r{bits}"), first, second);
    }

    /// <summary>An instruction on RAX and RSI, as a function of this process.</summary>
    private sealed unsafe class NativeInstruction : IDisposable
    {
        private const int PageSize = 4096;
        private const int Private = 2;
        private const int Anonymous = 0x20;
        private const int ReadWriteExecute = 7;

        private readonly nint page = Libc.Map(0, PageSize, ReadWriteExecute, Private | Anonymous, -1, 0);

        public NativeInstruction(Instruction instruction)
        {
            Assert.NotEqual(-1, page);
            TinyMultiboot.Assemble(64, (ulong)page, a =>
            {
                a.push(__qword_ptr[rdx]);
                a.popfq();
                a.mov(rax, __[rdi]);
                a.AddInstruction(instruction);
                a.pushfq();
                a.pop(__qword_ptr[rdx]);
                a.mov(__[rdi], rax);
                a.ret();
            }).CopyTo(new Span<byte>((void*)page, PageSize));
        }

        public (ulong Result, ulong Flags) Execute(ulong first, ulong second, ulong flags)
        {
            ((delegate* unmanaged<ulong*, ulong, ulong*, void>)page)(&first, second, &flags);
            return (first, flags);
        }

        public void Dispose() => _ = Libc.Unmap(page, PageSize);
    }
}
