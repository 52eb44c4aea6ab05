using Dmp.Kvm.Devices;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Emulation;

/// <summary>
/// The hypercalls of KVM that the CPUID model offers to a guest of several vCPUs (Linux Documentation/virt/kvm/x86/hypercalls.rst): one IPI
/// for many vCPUs, where x2APIC needs an exit for each, and the end of another vCPU's halt, with which waiters for a lock sleep instead
/// of using up the time of the one that holds it.
/// </summary>
internal sealed class Hypercalls(EmulationContext context)
{
    private const int BitsPerWord = 64;
    private const int ModeShift = 8;
    private const ulong ModeMask = 7;

    // The call is in RAX, its arguments in RBX, RCX, RDX and RSI.
    private enum Call : ulong
    {
        KickCpu = 5,
        SendIpi = 10,
    }

    private enum Error : long
    {
        InvalidArgument = -22,
        NoSuchCall = -1000,
    }

    /// <summary>VMCALL and VMMCALL of the guest kernel.</summary>
    internal Outcome Execute()
    {
        ref KvmRegs regs = ref context.Vcpu.Regs;
        regs.Rax = (ulong)((Call)regs.Rax switch
        {
            Call.KickCpu => EndHalt(regs.Rcx),
            Call.SendIpi => Send(regs.Rbx, regs.Rcx, (uint)regs.Rdx, regs.Rsi),
            _ => (long)Error.NoSuchCall,
        });
        return Outcome.Done;
    }

    private long EndHalt(ulong apicId)
    {
        if (apicId < (ulong)context.Chipset.LocalApics.Count)
        {
            context.Chipset.LocalApics[(int)apicId].PostWakeUp();
        }

        return 0;
    }

    /// <summary>Sends to the vCPUs of a bit map of 128 bits that begins at an APIC id. The command is as in the ICR.</summary>
    private long Send(ulong low, ulong high, uint first, ulong command)
    {
        DeliveryMode mode = (DeliveryMode)((command >> ModeShift) & ModeMask);
        if (mode is not (DeliveryMode.Fixed or DeliveryMode.Nmi))
        {
            return (long)Error.InvalidArgument;
        }

        long accepted = 0;
        for (int bit = 0; bit < 2 * BitsPerWord; bit++)
        {
            ulong word = bit < BitsPerWord ? low : high;
            InterruptMessage message = new(first + (uint)bit, Logical: false, mode, (byte)command, Level: false);
            if ((word & (1UL << (bit % BitsPerWord))) != 0 && context.Chipset.Send(message))
            {
                accepted++;
            }
        }

        return accepted;
    }
}
