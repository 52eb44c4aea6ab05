using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Emulation;

/// <summary>IN, OUT, INS, OUTS.</summary>
internal sealed class PortInstructions(EmulationContext context)
{
    private const int IoMapBaseOffset = 102;

    /// <summary>Whether user code may access the port: IOPL 3, or the bitmap of the guest's TSS (AMD APM vol. 2, 12.2.4).</summary>
    internal bool IsAllowedForUser(in Instruction instruction)
    {
        CpuState state = context.State;
        if (state.IoPrivilege == (ulong)Rflags.IoPrivilege)
        {
            return true;
        }

        uint port = PortOf(instruction);
        if (!context.Access.TryRead(state.TaskBase + IoMapBaseOffset, PageAccess.Read, out ushort mapBase)
            || mapBase + (port / 8) + 1 > state.TaskLimit
            || !context.Access.TryRead(state.TaskBase + mapBase + (port / 8), PageAccess.Read, out ushort bits))
        {
            return false;
        }

        int mask = (1 << SizeOf(instruction)) - 1;
        return ((bits >> (int)(port % 8)) & mask) == 0;
    }

    /// <summary>Executes the instruction.</summary>
    internal Outcome Execute(in Instruction instruction)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        ushort port = PortOf(instruction);
        int size = SizeOf(instruction);
        switch (instruction.Mnemonic)
        {
            case Mnemonic.In:
                Operands.Write(ref regs, instruction.Op0Register, context.Chipset.Ports.Read(port, size));
                return Outcome.Done;
            case Mnemonic.Out:
                context.Chipset.Ports.Write(port, size, (uint)Operands.Read(ref regs, instruction.Op1Register));
                return Outcome.Done;
            default:
                return Repeat(instruction, port, size);
        }
    }

    private Outcome Repeat(in Instruction instruction, ushort port, int size)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        bool input = instruction.Mnemonic is Mnemonic.Insb or Mnemonic.Insw or Mnemonic.Insd;
        bool repeats = instruction.HasRepPrefix || instruction.HasRepnePrefix;
        ulong step = (regs.Rflags & (ulong)Rflags.Direction) != 0 ? (ulong)-size : (ulong)size;
        Span<byte> bytes = stackalloc byte[sizeof(uint)];
        while (!repeats || regs.Rcx != 0)
        {
            ref ulong pointer = ref input ? ref regs.Rdi : ref regs.Rsi;
            if (input)
            {
                BitConverter.TryWriteBytes(bytes, context.Chipset.Ports.Read(port, size));
                if (!context.Access.TryWrite(pointer, bytes[..size], context.Access.OwnPrivilege))
                {
                    return context.RaiseAccess();
                }
            }
            else
            {
                bytes.Clear();
                if (!context.Access.TryRead(pointer, bytes[..size], context.Access.OwnPrivilege))
                {
                    return context.RaiseAccess();
                }

                context.Chipset.Ports.Write(port, size, BitConverter.ToUInt32(bytes));
            }

            pointer += step;
            if (!repeats)
            {
                break;
            }

            regs.Rcx--;
        }

        return Outcome.Done;
    }

    private ushort PortOf(in Instruction instruction)
    {
        bool immediate = instruction.Mnemonic switch
        {
            Mnemonic.In => instruction.Op1Kind == OpKind.Immediate8,
            Mnemonic.Out => instruction.Op0Kind == OpKind.Immediate8,
            _ => false,
        };
        return immediate ? instruction.Immediate8 : (ushort)context.Vcpu.Regs.Rdx;
    }

    private static int SizeOf(in Instruction instruction) => instruction.Mnemonic switch
    {
        Mnemonic.In => instruction.Op0Register.GetSize(),
        Mnemonic.Out => instruction.Op1Register.GetSize(),
        Mnemonic.Insb or Mnemonic.Outsb => 1,
        Mnemonic.Insw or Mnemonic.Outsw => 2,
        _ => 4,
    };
}
