using System.Runtime.InteropServices;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Emulation;

/// <summary>Changes of the virtual privilege level: SYSCALL, SYSRET, IRET and far returns.</summary>
internal sealed class ReturnInstructions(EmulationContext context)
{
    private const int RplMask = 3;
    private const int StarKernelShift = 32;
    private const int StarUserShift = 48;
    private const ushort SysretLongCodeOffset = 16;
    private const ushort SelectorStep = 8;
    private const ulong SysretFlags = 0x003C_7FD7;

    private readonly SegmentInstructions segments = new(context);

    private CpuState State => context.State;

    /// <summary>Loads RFLAGS as POPF and IRET of the current virtual CPL do: changeable bits real, IF and IOPL virtual.</summary>
    internal void LoadFlags(ulong flags)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        const ulong Real = (ulong)(Rflags.UserChangeable | Rflags.Resume);
        regs.Rflags = flags & Real;
        if (!State.UserMode)
        {
            State.IoPrivilege = flags & (ulong)Rflags.IoPrivilege;
        }

        if (!State.UserMode || State.IoPrivilege == (ulong)Rflags.IoPrivilege)
        {
            State.InterruptFlag = (flags & (ulong)Rflags.Interrupt) != 0;
        }
    }

    /// <summary>SYSCALL: RCX and R11 were set by the processor (AMD APM vol. 3, SYSCALL).</summary>
    internal Outcome SystemCall()
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        if ((State.Efer & Efer.SystemCall) == 0)
        {
            return context.Raise(GuestFault.InvalidOpcode);
        }

        ulong flags = regs.R11 & ~State.SyscallMask;
        regs.R11 = (regs.R11 & (ulong)(Rflags.UserChangeable | Rflags.Resume))
            | (ulong)(Rflags.AlwaysOne | Rflags.Interrupt) | State.IoPrivilege;
        regs.Rip = State.LongStar;
        regs.Rflags = flags & (ulong)Rflags.UserChangeable;
        State.InterruptFlag = State.InterruptFlag && (State.SyscallMask & (ulong)Rflags.Interrupt) == 0;
        State.IoPrivilege &= ~State.SyscallMask;
        State.Cpl = 0;
        State.CodeSelector = (ushort)((State.Star >> StarKernelShift) & ~(ulong)RplMask);
        State.StackSelector = (ushort)(State.CodeSelector + SelectorStep);
        return Outcome.Jumped;
    }

    /// <summary>The returns.</summary>
    internal Outcome Execute(in Instruction instruction) => instruction.Mnemonic switch
    {
        Mnemonic.Iretq => InterruptReturn(),
        Mnemonic.Sysretq => SystemReturn(compatibility: false),
        Mnemonic.Sysret => SystemReturn(compatibility: true),
        Mnemonic.Retf => FarReturn(instruction),
        _ => Outcome.Unsupported,
    };

    private Outcome SystemReturn(bool compatibility)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        ulong target = compatibility ? (uint)regs.Rcx : regs.Rcx;
        if (!Paging.IsCanonical(target))
        {
            return context.Raise(GuestFault.GeneralProtection);
        }

        ushort selector = (ushort)(State.Star >> StarUserShift);
        LoadFlags(regs.R11 & SysretFlags);
        regs.Rip = target;
        State.Cpl = 3;
        State.CodeSelector = (ushort)((compatibility ? selector : selector + SysretLongCodeOffset) | RplMask);
        State.StackSelector = (ushort)((selector + SelectorStep) | RplMask);
        return Outcome.Jumped;
    }

    private Outcome InterruptReturn()
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;

        // Also when it faults (Intel SDM vol. 3, 6.7.1).
        State.NmiBlocked = false;
        if ((regs.Rflags & (ulong)Rflags.NestedTask) != 0)
        {
            // There is no task to return to in long mode (AMD APM vol. 3, IRET).
            return context.Raise(GuestFault.GeneralProtection);
        }

        Span<ulong> frame = stackalloc ulong[5];
        if (!context.Access.TryRead(regs.Rsp, MemoryMarshal.AsBytes(frame), PageAccess.Read))
        {
            return context.RaiseStackAccess();
        }

        ushort code = (ushort)frame[1];
        ushort stack = (ushort)frame[4];
        if (!IsReturnTarget(code, frame[0], out bool isLong, out GuestFault fault) || !IsReturnStack(code, stack, out fault))
        {
            return context.Raise(fault);
        }

        if ((code & RplMask) == 0 && !isLong)
        {
            return Outcome.LeavesLongMode;
        }

        LoadFlags(frame[2]);
        regs.Rip = frame[0];
        regs.Rsp = frame[3];
        State.CodeSelector = code;
        State.StackSelector = stack;
        State.Cpl = code & RplMask;
        return Outcome.Jumped;
    }

    private Outcome FarReturn(in Instruction instruction)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        bool wide = instruction.Code is Code.Retfq or Code.Retfq_imm16;
        ulong rip;
        ushort code;
        ulong used;
        if (wide)
        {
            Span<ulong> frame = stackalloc ulong[2];
            if (!context.Access.TryRead(regs.Rsp, MemoryMarshal.AsBytes(frame), PageAccess.Read))
            {
                return context.RaiseStackAccess();
            }

            (rip, code, used) = (frame[0], (ushort)frame[1], 16);
        }
        else
        {
            Span<uint> frame = stackalloc uint[2];
            if (!context.Access.TryRead(regs.Rsp, MemoryMarshal.AsBytes(frame), PageAccess.Read))
            {
                return context.RaiseStackAccess();
            }

            (rip, code, used) = (frame[0], (ushort)frame[1], 8);
        }

        if ((code & RplMask) != 0)
        {
            return Outcome.Unsupported;
        }

        if (!IsReturnTarget(code, rip, out bool isLong, out GuestFault fault))
        {
            return context.Raise(fault);
        }

        if (!isLong)
        {
            return Outcome.LeavesLongMode;
        }

        regs.Rip = rip;
        regs.Rsp += used + (instruction.Code is Code.Retfq_imm16 or Code.Retfd_imm16 ? instruction.Immediate16 : 0u);
        State.CodeSelector = code;
        return Outcome.Jumped;
    }

    private bool IsReturnTarget(ushort selector, ulong target, out bool isLong, out GuestFault fault)
    {
        isLong = false;
        if ((selector & ~RplMask) == 0 || !Paging.IsCanonical(target))
        {
            fault = GuestFault.GeneralProtection;
            return false;
        }

        fault = new GuestFault(ExceptionVector.GeneralProtection, (uint)(selector & ~RplMask));
        bool found = segments.TryReadDescriptor(selector, out SegmentDescriptor descriptor);
        isLong = descriptor.IsLong;
        return found && descriptor.IsCode && descriptor.Privilege == (selector & RplMask)
            && (descriptor.Present || Raise(out fault, ExceptionVector.SegmentNotPresent, selector));
    }

    private bool IsReturnStack(ushort code, ushort stack, out GuestFault fault)
    {
        fault = new GuestFault(ExceptionVector.GeneralProtection, (uint)(stack & ~RplMask));
        if ((stack & ~RplMask) == 0)
        {
            // 64-bit code below CPL 3 may run with a null stack segment.
            fault = GuestFault.GeneralProtection;
            return (code & RplMask) != RplMask;
        }

        return (stack & RplMask) == (code & RplMask)
            && segments.TryReadDescriptor(stack, out SegmentDescriptor descriptor)
            && descriptor.IsWritable && descriptor.Privilege == (code & RplMask)
            && (descriptor.Present || Raise(out fault, ExceptionVector.Stack, stack));
    }

    private static bool Raise(out GuestFault fault, ExceptionVector vector, ushort selector)
    {
        fault = new GuestFault(vector, (uint)(selector & ~RplMask));
        return false;
    }
}
