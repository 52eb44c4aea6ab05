using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Msr = Dmp.Kvm.Cpu.Msr;

namespace Dmp.Kvm.Emulation;

/// <summary>RDMSR and WRMSR.</summary>
internal sealed class MsrInstructions(EmulationContext context)
{
    private const Efer ChangeableEfer = Efer.SystemCall | Efer.NoExecuteEnable | Efer.AutomaticIbrs;

    private CpuState State => context.State;

    private LocalApic Apic => context.Chipset.LocalApics[context.Index];

    /// <summary>RDMSR.</summary>
    internal Outcome Read()
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        uint index = (uint)regs.Rcx;
        if (!TryRead(index, out ulong value))
        {
            context.UnownedMsrs.Count(index);
            return context.Raise(GuestFault.GeneralProtection);
        }

        regs.Rax = (uint)value;
        regs.Rdx = value >> 32;
        return Outcome.Done;
    }

    /// <summary>WRMSR.</summary>
    internal Outcome Write()
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        uint index = (uint)regs.Rcx;
        if (TryWrite(index, (regs.Rax & uint.MaxValue) | (regs.Rdx << 32)))
        {
            return Outcome.Done;
        }

        context.UnownedMsrs.Count(index);
        return context.Raise(GuestFault.GeneralProtection);
    }

    /// <summary>Reads an MSR.</summary>
    /// <returns>False where the guest gets a #GP.</returns>
    internal bool TryRead(uint index, out ulong value)
    {
        if (LocalApic.OwnsMsr(index))
        {
            return Apic.TryReadMsr(index, out value);
        }

        ulong? known = (Msr)index switch
        {
            Msr.Tsc => context.Clock.Tsc,
            Msr.ApicBase => Apic.Base,
            Msr.Efer => (ulong)State.Efer,
            Msr.Star => State.Star,
            Msr.Lstar => State.LongStar,
            Msr.Cstar => State.CompatibilityStar,
            Msr.SyscallMask => State.SyscallMask,
            Msr.FsBase => context.Vcpu.Sregs.Fs.Base,
            Msr.GsBase => context.Vcpu.Sregs.Gs.Base,
            Msr.KernelGsBase => State.KernelGsBase,
            Msr.TscAux => State.TscAux,
            Msr.Pat => State.Pat,
            Msr.SysenterCs => State.SysenterCs,
            Msr.SysenterEsp => State.SysenterEsp,
            Msr.SysenterEip => State.SysenterEip,
            Msr.MiscEnable => State.MiscEnable,
            Msr.ArchCapabilities => CpuidModel.ArchCapabilities,
            Msr.KvmSystemTime => State.KvmSystemTime,

            // Read as zero: nothing is enabled that they could tell of.
            Msr.PlatformId or Msr.PatchLevel or Msr.PlatformInfo or Msr.MtrrCap or Msr.DebugCtl or Msr.SystemConfiguration
                or Msr.NorthbridgeConfiguration or Msr.InterruptPending or Msr.LoadStoreConfiguration => 0,
            Msr.HardwareConfiguration => TscCountsAtP0,
            Msr.DecodeConfiguration => LfenceSerializes,
            _ => null,
        };
        value = known.GetValueOrDefault();
        return known.HasValue;
    }

    /// <summary>HWCR[24]: the TSC counts at the frequency of P-state 0, whatever the core does.</summary>
    private const ulong TscCountsAtP0 = 1 << 24;

    /// <summary>DE_CFG[1]: LFENCE is dispatch serializing, which it is on every host that Dmp can run on.</summary>
    private const ulong LfenceSerializes = 1 << 1;

    /// <summary>Writes an MSR.</summary>
    /// <returns>False where the guest gets a #GP.</returns>
    internal bool TryWrite(uint index, ulong value)
    {
        if (LocalApic.OwnsMsr(index))
        {
            return Apic.TryWriteMsr(index, value);
        }

        switch ((Msr)index)
        {
            case Msr.FsBase:
                return TrySetAddress(ref context.Vcpu.Sregs.Fs.Base, value);
            case Msr.GsBase:
                return TrySetAddress(ref context.Vcpu.Sregs.Gs.Base, value);
            case Msr.KernelGsBase:
                return TrySetAddress(ref State.Page[VcpuPageField.KernelGsBase], value);
            case Msr.Efer:
                return TryWriteEfer((Efer)value);
            case Msr.Star:
                State.Star = value;
                return true;
            case Msr.Lstar:
                return TrySetAddress(ref State.LongStar, value);
            case Msr.Cstar:
                State.CompatibilityStar = value;
                return true;
            case Msr.SyscallMask:
                State.SyscallMask = (uint)value;
                return true;
            case Msr.ApicBase:
                return Apic.TryWriteBase(value);
            case Msr.TscAux:
                // User code reads it natively (RDTSCP, RDPID).
                State.TscAux = (uint)value;
                _ = context.Vcpu.TrySetMsr(index, (uint)value);
                return true;
            case Msr.Pat:
                State.Pat = value;
                return true;
            case Msr.SysenterCs:
                State.SysenterCs = value;
                return true;
            case Msr.SysenterEsp:
                State.SysenterEsp = value;
                return true;
            case Msr.SysenterEip:
                State.SysenterEip = value;
                return true;
            case Msr.MiscEnable:
                State.MiscEnable = value;
                return true;
            case Msr.KvmSystemTime:
                State.KvmSystemTime = value;
                return context.ParavirtualClock.TryWriteSystemTime(value);
            case Msr.KvmWallClock:
                return context.ParavirtualClock.TryWriteWallClock(value);

            // Without effect on a machine that has nothing to switch there.
            case Msr.PatchLevel or Msr.DebugCtl or Msr.SystemConfiguration or Msr.HardwareConfiguration or Msr.InterruptPending
                or Msr.NorthbridgeConfiguration or Msr.LoadStoreConfiguration or Msr.DecodeConfiguration or Msr.Tsc:
                return true;
            default:
                return false;
        }
    }

    private static bool TrySetAddress(ref ulong register, ulong value)
    {
        if (!Paging.IsCanonical(value))
        {
            return false;
        }

        register = value;
        return true;
    }

    private bool TryWriteEfer(Efer value)
    {
        const Efer Fixed = Efer.LongModeEnable | Efer.LongModeActive;
        if ((value & ~(ChangeableEfer | Fixed)) != 0 || (value & Efer.LongModeEnable) == 0)
        {
            return false;
        }

        bool flush = ((value ^ State.Efer) & Efer.NoExecuteEnable) != 0;
        State.Efer = value | Fixed;
        if (flush)
        {
            context.Tlb.FlushAll();
        }

        return true;
    }
}
