using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Emulation;

/// <summary>
/// Memory-mapped I/O: the moves by which kernels access device registers (MOV, MOVZX, MOVSX, STOS, MOVS).
/// </summary>
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
            default:
                return Outcome.Unsupported;
        }
    }

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
