using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Iced.Intel;

namespace Dmp.Kvm.Emulation;

/// <summary>Emulates the sensitive instructions of the guest kernel, and the few that user code may execute.</summary>
internal sealed class SensitiveInstructions
{
    private readonly EmulationContext context;
    private readonly ControlInstructions control;
    private readonly MsrInstructions msrs;
    private readonly SegmentInstructions segments;
    private readonly ReturnInstructions returns;
    private readonly PortInstructions ports;
    private readonly Hypercalls hypercalls;

    internal SensitiveInstructions(EmulationContext context)
    {
        this.context = context;
        control = new ControlInstructions(context);
        msrs = new MsrInstructions(context);
        segments = new SegmentInstructions(context);
        returns = new ReturnInstructions(context);
        ports = new PortInstructions(context);
        hypercalls = new Hypercalls(context);
    }

    /// <summary>SYSCALL from user code.</summary>
    internal Outcome EnterSystemCall() => returns.SystemCall();

    /// <summary>Executes an instruction of the guest kernel (virtual CPL 0).</summary>
    internal Outcome Execute(in Instruction instruction)
    {
        switch (instruction.Mnemonic)
        {
            case Mnemonic.Cli:
                context.State.InterruptFlag = false;
                return Outcome.Done;
            case Mnemonic.Sti:
                context.State.InterruptFlag = true;
                return Outcome.Done;
            case Mnemonic.Hlt:
                return Outcome.Halt;
            case Mnemonic.Pushfq or Mnemonic.Pushf:
                return PushFlags(instruction);
            case Mnemonic.Popfq or Mnemonic.Popf:
                return PopFlags(instruction);
            case Mnemonic.Cpuid:
                return Cpuid();
            case Mnemonic.In or Mnemonic.Out or Mnemonic.Insb or Mnemonic.Insw or Mnemonic.Insd
                or Mnemonic.Outsb or Mnemonic.Outsw or Mnemonic.Outsd:
                return ports.Execute(instruction);
            case Mnemonic.Rdmsr:
                return msrs.Read();
            case Mnemonic.Wrmsr:
                return msrs.Write();
            case Mnemonic.Mov when IsControlOrDebug(instruction.Op0Register) || IsControlOrDebug(instruction.Op1Register):
                return control.Move(instruction);
            case Mnemonic.Mov when instruction.Op0Register.IsSegmentRegister() || instruction.Op1Register.IsSegmentRegister():
                return segments.Move(instruction);
            case Mnemonic.Clts or Mnemonic.Lmsw or Mnemonic.Smsw or Mnemonic.Invlpg or Mnemonic.Invpcid or Mnemonic.Xsetbv
                or Mnemonic.Wbinvd or Mnemonic.Wbnoinvd or Mnemonic.Invd or Mnemonic.Swapgs:
                return control.Execute(instruction);
            case Mnemonic.Lgdt or Mnemonic.Lidt or Mnemonic.Sgdt or Mnemonic.Sidt or Mnemonic.Lldt or Mnemonic.Sldt or Mnemonic.Ltr
                or Mnemonic.Str or Mnemonic.Lar or Mnemonic.Lsl or Mnemonic.Verr or Mnemonic.Verw:
                return segments.Execute(instruction);
            case Mnemonic.Iretq or Mnemonic.Iretd or Mnemonic.Retf or Mnemonic.Sysret or Mnemonic.Sysretq:
                return returns.Execute(instruction);
            case Mnemonic.Int:
                return SoftwareInterrupt(instruction);
            case Mnemonic.Vmcall or Mnemonic.Vmmcall:
                return hypercalls.Execute();
            case Mnemonic.Jmp when instruction.IsJmpFarIndirect:
                // Runs natively, wherever it goes: the start-up phase ends in 64-bit mode.
                return Outcome.LeavesLongMode;
            case Mnemonic.Rdfsbase or Mnemonic.Rdgsbase or Mnemonic.Wrfsbase or Mnemonic.Wrgsbase:
                return segments.MoveBase(instruction);
            case Mnemonic.Monitor or Mnemonic.Mwait or Mnemonic.Clac or Mnemonic.Stac:
                // Not in the CPUID model.
                return context.Raise(GuestFault.InvalidOpcode);
            default:
                return Outcome.NotSensitive;
        }
    }

    /// <summary>Executes an instruction of user code that faulted here but might not fault on a real CPU.</summary>
    internal Outcome ExecuteForUser(in Instruction instruction)
    {
        switch (instruction.Mnemonic)
        {
            case Mnemonic.Int:
                return SoftwareInterrupt(instruction);
            case Mnemonic.In or Mnemonic.Out or Mnemonic.Insb or Mnemonic.Insw or Mnemonic.Insd
                or Mnemonic.Outsb or Mnemonic.Outsw or Mnemonic.Outsd:
                return ports.IsAllowedForUser(instruction) ? ports.Execute(instruction) : Outcome.NotSensitive;
            case Mnemonic.Cli or Mnemonic.Sti when context.State.IoPrivilege == (ulong)Rflags.IoPrivilege:
                return Execute(instruction);
            case Mnemonic.Sgdt or Mnemonic.Sidt or Mnemonic.Sldt or Mnemonic.Str
                when (context.State.Cr4 & Cr4.UserModeInstructionPrevention) == 0:
                return segments.Execute(instruction);
            case Mnemonic.Rdfsbase or Mnemonic.Rdgsbase or Mnemonic.Wrfsbase or Mnemonic.Wrgsbase:
                return segments.MoveBase(instruction);
            case Mnemonic.Monitor or Mnemonic.Mwait:
                return context.Raise(GuestFault.InvalidOpcode);
            case Mnemonic.Smsw when (context.State.Cr4 & Cr4.UserModeInstructionPrevention) == 0:
                return control.Execute(instruction);
            default:
                return Outcome.NotSensitive;
        }
    }

    private static bool IsControlOrDebug(Register register) => register.IsCR() || register.IsDR();

    private Outcome PushFlags(in Instruction instruction)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        const ulong NotPushed = (ulong)(Rflags.Resume | Rflags.Virtual8086);
        ulong flags = context.Events.GuestFlags & ~NotPushed;
        int size = instruction.Mnemonic == Mnemonic.Pushf ? sizeof(ushort) : sizeof(ulong);
        ulong rsp = regs.Rsp - (ulong)size;
        bool written = size == sizeof(ulong)
            ? context.Access.TryWrite(rsp, flags, context.Access.OwnPrivilege)
            : context.Access.TryWrite(rsp, (ushort)flags, context.Access.OwnPrivilege);
        if (!written)
        {
            return context.RaiseStackAccess();
        }

        regs.Rsp = rsp;
        return Outcome.Done;
    }

    private Outcome PopFlags(in Instruction instruction)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        if (!context.Access.TryRead(regs.Rsp, context.Access.OwnPrivilege, out ulong flags))
        {
            return context.RaiseStackAccess();
        }

        int size = sizeof(ulong);
        if (instruction.Mnemonic == Mnemonic.Popf)
        {
            size = sizeof(ushort);
            flags = (regs.Rflags & ~(ulong)ushort.MaxValue) | (flags & ushort.MaxValue);
        }

        regs.Rsp += (ulong)size;
        returns.LoadFlags(flags & ~(ulong)Rflags.Resume);
        return Outcome.Done;
    }

    private Outcome Cpuid()
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        CpuidResult result = context.Cpuid.Query((uint)regs.Rax, (uint)regs.Rcx, context.Index, context.State);
        regs.Rax = result.Eax;
        regs.Rbx = result.Ebx;
        regs.Rcx = result.Ecx;
        regs.Rdx = result.Edx;
        return Outcome.Done;
    }

    private Outcome SoftwareInterrupt(in Instruction instruction) =>
        context.Events.DeliverSoftware(instruction.Immediate8, instruction.NextIP) ? Outcome.Jumped : Outcome.Shutdown;
}
