using System.Runtime.CompilerServices;
using Dmp.Kvm.Interop;
using Iced.Intel;

namespace Dmp.Kvm.Emulation;

/// <summary>Register and memory operands of a decoded instruction, on a vCPU's registers.</summary>
internal static class Operands
{
    /// <summary>The 64-bit register that an 8, 16, 32 or 64-bit general register is part of.</summary>
    internal static ref ulong Full(ref KvmRegs regs, Register register)
    {
        switch (register.GetFullRegister())
        {
            case Register.RAX: return ref regs.Rax;
            case Register.RBX: return ref regs.Rbx;
            case Register.RCX: return ref regs.Rcx;
            case Register.RDX: return ref regs.Rdx;
            case Register.RSI: return ref regs.Rsi;
            case Register.RDI: return ref regs.Rdi;
            case Register.RSP: return ref regs.Rsp;
            case Register.RBP: return ref regs.Rbp;
            case Register.R8: return ref regs.R8;
            case Register.R9: return ref regs.R9;
            case Register.R10: return ref regs.R10;
            case Register.R11: return ref regs.R11;
            case Register.R12: return ref regs.R12;
            case Register.R13: return ref regs.R13;
            case Register.R14: return ref regs.R14;
            case Register.R15: return ref regs.R15;
            case Register.RIP: return ref regs.Rip;
            default: throw new ArgumentOutOfRangeException(nameof(register), register, "not a general register");
        }
    }

    /// <summary>Reads a general register of any size, zero-extended.</summary>
    internal static ulong Read(ref KvmRegs regs, Register register)
    {
        ulong value = Full(ref regs, register);
        return register.GetSize() switch
        {
            1 => IsHighByte(register) ? (value >> 8) & 0xFF : value & 0xFF,
            2 => value & 0xFFFF,
            4 => value & 0xFFFF_FFFF,
            _ => value,
        };
    }

    /// <summary>Writes a general register of any size; a 32-bit write clears the upper half, as the processor does.</summary>
    internal static void Write(ref KvmRegs regs, Register register, ulong value)
    {
        ref ulong full = ref Full(ref regs, register);
        full = register.GetSize() switch
        {
            1 => IsHighByte(register) ? (full & ~0xFF00UL) | ((value & 0xFF) << 8) : (full & ~0xFFUL) | (value & 0xFF),
            2 => (full & ~0xFFFFUL) | (value & 0xFFFF),
            4 => value & 0xFFFF_FFFF,
            _ => value,
        };
    }

    /// <summary>The linear address of the memory operand.</summary>
    internal static ulong Address(ref KvmRegs regs, in KvmSregs sregs, in Instruction instruction)
    {
        ulong address = instruction.IsIPRelativeMemoryOperand
            ? instruction.IPRelativeMemoryAddress
            : instruction.MemoryDisplacement64;
        if (!instruction.IsIPRelativeMemoryOperand)
        {
            if (instruction.MemoryBase != Register.None)
            {
                address += Read(ref regs, instruction.MemoryBase);
            }

            if (instruction.MemoryIndex != Register.None)
            {
                address += Read(ref regs, instruction.MemoryIndex) * (ulong)instruction.MemoryIndexScale;
            }

            if (instruction.MemoryBase.GetSize() == 4 || instruction.MemoryIndex.GetSize() == 4)
            {
                address &= 0xFFFF_FFFF;
            }
        }

        return address + instruction.MemorySegment switch
        {
            Register.FS => sregs.Fs.Base,
            Register.GS => sregs.Gs.Base,
            _ => 0,
        };
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool IsHighByte(Register register) => register is Register.AH or Register.BH or Register.CH or Register.DH;
}
