using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Emulation;

/// <summary>Control and debug registers, TLB and cache control, SWAPGS, XSETBV.</summary>
internal sealed class ControlInstructions(EmulationContext context)
{
    private const ulong Cr3KeepEntries = 1UL << 63;
    private const ulong PcidMask = 0xFFF;
    private const ulong Dr7Defined = 0xFFFF_2FFF;
    private const ulong Dr7AlwaysOne = 0x400;
    private const ulong Dr6Changeable = 0xE00F;

    // Changes of these flush the whole TLB (Intel SDM vol. 3, 4.10.4.1).
    private const Cr4 FlushingCr4 = Cr4.PageGlobal | Cr4.Pcid | Cr4.PhysicalAddressExtension | Cr4.PageSizeExtensions;

    private const Cr4 SupportedCr4 = Cr4.TimeStampDisable | Cr4.DebuggingExtensions | Cr4.PageSizeExtensions
        | Cr4.PhysicalAddressExtension | Cr4.MachineCheck | Cr4.PageGlobal | Cr4.PerformanceCounter | Cr4.FxSave | Cr4.SimdExceptions
        | Cr4.UserModeInstructionPrevention | Cr4.FsGsBase | Cr4.Pcid | Cr4.XSave;

    private CpuState State => context.State;

    /// <summary>MOV to and from CRn and DRn.</summary>
    internal Outcome Move(in Instruction instruction)
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        Register target = instruction.Op0Register;
        Register source = instruction.Op1Register;
        if (target.IsCR())
        {
            return WriteControl(target, Operands.Read(ref regs, source));
        }

        if (target.IsDR())
        {
            return WriteDebug(target - Register.DR0, Operands.Read(ref regs, source));
        }

        if (source.IsDR())
        {
            return ReadDebug(source - Register.DR0, ref Operands.Full(ref regs, target));
        }

        switch (source)
        {
            case Register.CR0:
                Operands.Write(ref regs, target, State.Cr0);
                return Outcome.Done;
            case Register.CR2:
                Operands.Write(ref regs, target, State.Cr2);
                return Outcome.Done;
            case Register.CR3:
                Operands.Write(ref regs, target, State.Cr3);
                return Outcome.Done;
            case Register.CR4:
                Operands.Write(ref regs, target, (ulong)State.Cr4);
                return Outcome.Done;
            case Register.CR8:
                Operands.Write(ref regs, target, context.Chipset.LocalApics[context.Index].Cr8);
                return Outcome.Done;
            default:
                return context.Raise(GuestFault.InvalidOpcode);
        }
    }

    /// <summary>The instructions that are not moves.</summary>
    internal Outcome Execute(in Instruction instruction)
    {
        switch (instruction.Mnemonic)
        {
            case Mnemonic.Clts:
                return WriteCr0(State.Cr0 & ~(ulong)Cr0.TaskSwitched);
            case Mnemonic.Smsw:
                return StoreMachineStatus(instruction);
            case Mnemonic.Lmsw:
                return LoadMachineStatus(instruction);
            case Mnemonic.Invlpg:
                context.Tlb.FlushPage(Operands.Address(ref context.Vcpu.Regs, context.Vcpu.Sregs, instruction));
                return Outcome.Done;
            case Mnemonic.Invpcid:
                return InvalidatePcid(instruction);
            case Mnemonic.Swapgs:
                (State.KernelGsBase, context.Vcpu.Sregs.Gs.Base) = (context.Vcpu.Sregs.Gs.Base, State.KernelGsBase);
                return Outcome.Done;
            case Mnemonic.Xsetbv:
                return SetExtendedControl();
            default:
                // WBINVD, WBNOINVD, INVD: caches are coherent and nobody's memory is uncached.
                return Outcome.Done;
        }
    }

    private Outcome WriteControl(Register register, ulong value)
    {
        switch (register)
        {
            case Register.CR0:
                return WriteCr0(value);
            case Register.CR2:
                State.Cr2 = value;
                return Outcome.Done;
            case Register.CR3:
                return WriteCr3(value);
            case Register.CR4:
                return WriteCr4((Cr4)value);
            case Register.CR8 when value <= 0xF:
                context.Chipset.LocalApics[context.Index].Cr8 = (byte)value;
                return Outcome.Done;
            case Register.CR8:
                return context.Raise(GuestFault.GeneralProtection);
            default:
                return context.Raise(GuestFault.InvalidOpcode);
        }
    }

    private Outcome WriteCr0(ulong value)
    {
        const ulong Fixed = (ulong)(Cr0.ProtectionEnable | Cr0.Paging);
        if ((value >> 32) != 0)
        {
            return context.Raise(GuestFault.GeneralProtection);
        }

        if ((value & Fixed) != Fixed)
        {
            // Leaving long mode: nothing that runs in 64-bit mode does it but a kexec or a reboot through real mode.
            return Outcome.Unsupported;
        }

        bool flush = ((value ^ State.Cr0) & (ulong)Cr0.WriteProtect) != 0;
        State.Cr0 = value | (ulong)Cr0.ExtensionType;
        if (flush)
        {
            context.Tlb.FlushAll();
        }

        return Outcome.Done;
    }

    private Outcome WriteCr3(ulong value)
    {
        bool tagged = (State.Cr4 & Cr4.Pcid) != 0;
        bool keep = tagged && (value & Cr3KeepEntries) != 0;
        State.Cr3 = value & ~Cr3KeepEntries;
        context.Tlb.Load((ushort)(tagged ? value & PcidMask : 0), keep);
        context.Tlb.NoteRoot(tagged ? State.Cr3 : null);
        return Outcome.Done;
    }

    private Outcome WriteCr4(Cr4 value)
    {
        if ((value & ~SupportedCr4) != 0 || (value & Cr4.PhysicalAddressExtension) == 0
            || ((value & Cr4.UserModeInstructionPrevention) != 0 && !context.Cpuid.HasUmip)
            || ((value & Cr4.FsGsBase) != 0 && !context.Cpuid.HasFsGsBase))
        {
            return context.Raise(GuestFault.GeneralProtection);
        }

        bool enablesPcid = (value & Cr4.Pcid) != 0 && (State.Cr4 & Cr4.Pcid) == 0;
        if (enablesPcid && (State.Cr3 & PcidMask) != 0)
        {
            return context.Raise(GuestFault.GeneralProtection);
        }

        bool flush = ((value ^ State.Cr4) & FlushingCr4) != 0;
        State.Cr4 = value;
        if (flush)
        {
            context.Tlb.ForgetRoots();
            context.Tlb.FlushAll();
        }

        return Outcome.Done;
    }

    private Outcome WriteDebug(int number, ulong value)
    {
        if (number is 4 or 5)
        {
            number += 2;
        }

        if (number >= 6 && (value >> 32) != 0)
        {
            return context.Raise(GuestFault.GeneralProtection);
        }

        switch (number)
        {
            case 6:
                State.Dr6 = (value & Dr6Changeable) | (ulong)Dr6.Fixed;
                break;
            case 7:
                State.Dr7 = (value & Dr7Defined) | Dr7AlwaysOne;
                break;
            default:
                State.DebugAddress[number] = value;
                break;
        }

        return Outcome.Done;
    }

    private Outcome ReadDebug(int number, ref ulong target)
    {
        target = number switch
        {
            4 or 6 => State.Dr6,
            5 or 7 => State.Dr7,
            _ => State.DebugAddress[number],
        };
        return Outcome.Done;
    }

    private Outcome StoreMachineStatus(in Instruction instruction)
    {
        if (instruction.Op0Kind == OpKind.Register)
        {
            Operands.Write(ref context.Vcpu.Regs, instruction.Op0Register, State.Cr0);
            return Outcome.Done;
        }

        ulong address = Operands.Address(ref context.Vcpu.Regs, context.Vcpu.Sregs, instruction);
        return context.Access.TryWrite(address, (ushort)State.Cr0, context.Access.OwnPrivilege) ? Outcome.Done : context.RaiseAccess();
    }

    private Outcome LoadMachineStatus(in Instruction instruction)
    {
        const ulong Loaded = (ulong)(Cr0.MonitorCoprocessor | Cr0.Emulation | Cr0.TaskSwitched);
        ushort value;
        if (instruction.Op0Kind == OpKind.Register)
        {
            value = (ushort)Operands.Read(ref context.Vcpu.Regs, instruction.Op0Register);
        }
        else
        {
            ulong address = Operands.Address(ref context.Vcpu.Regs, context.Vcpu.Sregs, instruction);
            if (!context.Access.TryRead(address, context.Access.OwnPrivilege, out value))
            {
                return context.RaiseAccess();
            }
        }

        return WriteCr0((State.Cr0 & ~Loaded) | (value & Loaded));
    }

    private Outcome InvalidatePcid(in Instruction instruction)
    {
        ulong type = Operands.Read(ref context.Vcpu.Regs, instruction.Op0Register);
        ulong address = Operands.Address(ref context.Vcpu.Regs, context.Vcpu.Sregs, instruction);
        Span<ulong> descriptor = stackalloc ulong[2];
        if (!context.Access.TryRead(address, System.Runtime.InteropServices.MemoryMarshal.AsBytes(descriptor), PageAccess.Read))
        {
            return context.RaiseAccess();
        }

        bool tagged = (State.Cr4 & Cr4.Pcid) != 0;
        if (type > 3 || descriptor[0] > PcidMask || (type < 2 && descriptor[0] != 0 && !tagged)
            || (type == 0 && !Paging.IsCanonical(descriptor[1])))
        {
            return context.Raise(GuestFault.GeneralProtection);
        }

        ushort pcid = (ushort)descriptor[0];
        switch (type)
        {
            case 0:
                context.Tlb.FlushPage(pcid, descriptor[1]);
                break;
            case 1:
                context.Tlb.FlushTag(pcid);
                break;
            case 2:
                context.Tlb.FlushAll();
                break;
            default:
                context.Tlb.FlushNonGlobal();
                break;
        }

        return Outcome.Done;
    }

    private Outcome SetExtendedControl()
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        ulong value = (regs.Rax & uint.MaxValue) | (regs.Rdx << 32);
        bool valid = (uint)regs.Rcx == 0 && (State.Cr4 & Cr4.XSave) != 0
            && (value & 1) != 0 && (value & ~context.Cpuid.SupportedXcr0) == 0;
        if (!valid || !context.Vcpu.TrySetXcr0(value))
        {
            return context.Raise(GuestFault.GeneralProtection);
        }

        State.Xcr0 = value;
        return Outcome.Done;
    }
}
