using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Emulation;

/// <summary>
/// Memory-mapped I/O: the moves by which kernels access device registers (MOV, MOVZX, MOVSX, XCHG, STOS, MOVS), and the arithmetic that
/// compilers make of accesses which change or test a few bits (<see cref="Arithmetic"/>).
/// </summary>
/// <remarks>
/// What reads and writes is two accesses, which others may come between, also with LOCK: device registers are not RAM, and no kernel synchronizes
/// its processors by them.
/// </remarks>
internal sealed class MmioInstructions(EmulationContext context)
{
    /// <summary>Executes one instruction whose memory operand is a device register.</summary>
    internal Outcome Execute(in Instruction instruction)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        int size = instruction.MemorySize.GetSize();
        switch (instruction.Mnemonic)
        {
            case Mnemonic.Mov when instruction.Op0Kind == OpKind.Memory:
                {
                    ulong value = instruction.Op1Kind == OpKind.Register
                        ? Operands.Read(ref regs, instruction.Op1Register)
                        : instruction.GetImmediate(1);
                    return Write(Address(instruction), size, value);
                }

            case Mnemonic.Mov or Mnemonic.Movzx or Mnemonic.Movsx or Mnemonic.Movsxd when instruction.Op1Kind == OpKind.Memory:
                {
                    if (!TryRead(Address(instruction), size, out ulong value))
                    {
                        return context.RaiseAccess();
                    }

                    bool signed = instruction.Mnemonic is Mnemonic.Movsx or Mnemonic.Movsxd;
                    Operands.Write(ref regs, instruction.Op0Register, signed ? SignExtend(value, size) : value);
                    return Outcome.Done;
                }

            case Mnemonic.Stosb or Mnemonic.Stosw or Mnemonic.Stosd or Mnemonic.Stosq:
            case Mnemonic.Movsb or Mnemonic.Movsw or Mnemonic.Movsd or Mnemonic.Movsq when !instruction.Op0Register.IsXMM():
                return Repeat(instruction, size);
            case Mnemonic.Xchg when instruction.Op0Kind == OpKind.Memory:
                return Exchange(instruction, size);
            default:
                return !Arithmetic.Knows(instruction.Mnemonic) ? Outcome.Unsupported
                    : instruction.Op0Kind == OpKind.Memory ? ComputeInMemory(instruction, size)
                    : ComputeInRegister(instruction, size);
        }
    }

    private Outcome Exchange(in Instruction instruction, int size)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        ulong address = Address(instruction);
        if (!CanWrite(address) || !TryRead(address, size, out ulong value))
        {
            return context.RaiseAccess();
        }

        if (Write(address, size, Operands.Read(ref regs, instruction.Op1Register)) != Outcome.Done)
        {
            return Outcome.Fault;
        }

        Operands.Write(ref regs, instruction.Op1Register, value);
        return Outcome.Done;
    }

    private Outcome ComputeInRegister(in Instruction instruction, int size)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        if (!TryRead(Address(instruction), size, out ulong value))
        {
            return context.RaiseAccess();
        }

        ulong own = Operands.Read(ref regs, instruction.Op0Register);
        ulong result = Arithmetic.Compute(instruction.Mnemonic, own, value, size, ref regs.Rflags);
        if (!Arithmetic.OnlyTests(instruction.Mnemonic))
        {
            Operands.Write(ref regs, instruction.Op0Register, result);
        }

        return Outcome.Done;
    }

    private Outcome ComputeInMemory(in Instruction instruction, int size)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        bool writes = !Arithmetic.OnlyTests(instruction.Mnemonic);
        ulong other = instruction.OpCount == 1 ? 0
            : instruction.Op1Kind == OpKind.Register ? Operands.Read(ref regs, instruction.Op1Register)
            : instruction.GetImmediate(1);
        ulong address = Address(instruction);
        if (Arithmetic.IsOfBits(instruction.Mnemonic) && instruction.Op1Kind == OpKind.Register)
        {
            // The number of the bit, signed, may be that of one in another operand of this size, before or behind this one.
            long number = (long)SignExtend(other, size);
            long width = size * 8;
            address += (ulong)((number - (number & (width - 1))) / 8);
        }

        if ((writes && !CanWrite(address)) || !TryRead(address, size, out ulong value))
        {
            return context.RaiseAccess();
        }

        // Not before the write: an instruction that faults leaves them alone.
        ulong flags = regs.Rflags;
        ulong result = Arithmetic.Compute(instruction.Mnemonic, value, other, size, ref flags);
        if (writes && Write(address, size, result) != Outcome.Done)
        {
            return Outcome.Fault;
        }

        regs.Rflags = flags;
        return Outcome.Done;
    }

    private bool CanWrite(ulong address) =>
        context.Access.TryTranslate(address, context.Access.OwnPrivilege | PageAccess.Write, out _);

    private ulong Address(in Instruction instruction) =>
        Operands.Address(ref context.Vcpu.Regs, context.Vcpu.Sregs, instruction);

    private Outcome Repeat(in Instruction instruction, int size)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        bool moves = instruction.Mnemonic is Mnemonic.Movsb or Mnemonic.Movsw or Mnemonic.Movsd or Mnemonic.Movsq;
        bool repeats = instruction.HasRepPrefix || instruction.HasRepnePrefix;
        ulong step = (regs.Rflags & (ulong)Rflags.Direction) != 0 ? (ulong)-size : (ulong)size;
        while (!repeats || regs.Rcx != 0)
        {
            ulong value = regs.Rax;
            if (moves && !TryRead(regs.Rsi, size, out value))
            {
                return context.RaiseAccess();
            }

            if (Write(regs.Rdi, size, value) != Outcome.Done)
            {
                return Outcome.Fault;
            }

            regs.Rdi += step;
            regs.Rsi += moves ? step : 0;
            if (!repeats)
            {
                break;
            }

            regs.Rcx--;
        }

        return Outcome.Done;
    }

    private bool TryRead(ulong address, int size, out ulong value)
    {
        value = 0;
        PageAccess access = context.Access.OwnPrivilege;
        if (!context.Access.TryTranslate(address, access, out Translation translation))
        {
            return false;
        }

        if (context.Memory.Contains(translation.Address, (ulong)size))
        {
            Span<byte> bytes = stackalloc byte[sizeof(ulong)];
            bytes.Clear();
            bool read = context.Access.TryRead(address, bytes[..size], access);
            value = BitConverter.ToUInt64(bytes);
            return read;
        }

        value = context.Chipset.ReadMmio(context.Index, translation.Address.Value, size);
        return true;
    }

    private Outcome Write(ulong address, int size, ulong value)
    {
        PageAccess access = context.Access.OwnPrivilege | PageAccess.Write;
        if (!context.Access.TryTranslate(address, access, out Translation translation))
        {
            return context.RaiseAccess();
        }

        if (context.Memory.Contains(translation.Address, (ulong)size))
        {
            Span<byte> bytes = stackalloc byte[sizeof(ulong)];
            _ = BitConverter.TryWriteBytes(bytes, value);
            return context.Access.TryWrite(address, bytes[..size], access) ? Outcome.Done : context.RaiseAccess();
        }

        ulong mask = size == sizeof(ulong) ? ulong.MaxValue : (1UL << (size * 8)) - 1;
        context.Chipset.WriteMmio(context.Index, translation.Address.Value, size, value & mask);
        return Outcome.Done;
    }

    private static ulong SignExtend(ulong value, int size)
    {
        int shift = 64 - (size * 8);
        return (ulong)((long)(value << shift) >> shift);
    }
}
