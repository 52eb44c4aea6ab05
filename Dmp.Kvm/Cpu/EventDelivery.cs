using System.Runtime.InteropServices;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Cpu;

/// <summary>How an event came about.</summary>
internal enum EventSource
{
    /// <summary>An exception or an interrupt from outside.</summary>
    Hardware,

    /// <summary>INT n, INT3, INTO: the gate's DPL is checked.</summary>
    Software,
}

/// <summary>
/// Delivers exceptions and interrupts through the guest's own IDT, as a processor in long mode does (AMD APM vol. 2, 8.9).
/// </summary>
/// <param name="vcpu">Registers.</param>
/// <param name="state">Virtual CPU state.</param>
/// <param name="access">Guest memory.</param>
internal sealed class EventDelivery(ICpuRegisters vcpu, CpuState state, GuestAccess access)
{
    private const int GateSize = 16;
    private const int InterruptStackTableOffset = 36;
    private const int Rsp0Offset = 4;
    private const int FrameWords = 6;
    private const ulong IdtErrorCode = 2;
    private const ulong StackAlignment = 16;

    /// <summary>The flags as the guest is to see them.</summary>
    internal ulong GuestFlags => (vcpu.Regs.Rflags & (ulong)(Rflags.UserChangeable | Rflags.Resume))
        | (ulong)Rflags.AlwaysOne
        | (state.InterruptFlag ? (ulong)Rflags.Interrupt : 0)
        | state.IoPrivilege;

    /// <summary>Delivers a fault, and what follows from faults on the way (AMD APM vol. 2, table 8-3).</summary>
    /// <returns>False for a triple fault.</returns>
    internal bool DeliverFault(in GuestFault fault, EventSource source = EventSource.Hardware)
    {
        GuestFault pending = fault;
        while (true)
        {
            if (pending.Vector == ExceptionVector.PageFault)
            {
                state.Cr2 = pending.Address;
            }

            if (TryDeliver((byte)pending.Vector, source, pending.HasErrorCode, pending.ErrorCode, out GuestFault next))
            {
                return true;
            }

            if (pending.Vector == ExceptionVector.DoubleFault)
            {
                return false;
            }

            bool doubleFault = (pending.IsContributory && next.IsContributory)
                || (pending.Vector == ExceptionVector.PageFault
                    && (next.IsContributory || next.Vector == ExceptionVector.PageFault));
            pending = doubleFault ? new GuestFault(ExceptionVector.DoubleFault) : next;
            source = EventSource.Hardware;
        }
    }

    /// <summary>Delivers an external interrupt.</summary>
    /// <returns>False for a triple fault.</returns>
    internal bool DeliverInterrupt(byte vector) =>
        TryDeliver(vector, EventSource.Hardware, false, 0, out GuestFault fault) || DeliverFault(fault);

    /// <summary>Delivers an NMI. The caller has seen that none is held back, whatever IF is.</summary>
    /// <returns>False for a triple fault.</returns>
    internal bool DeliverNmi()
    {
        state.NmiBlocked = true;
        return DeliverInterrupt((byte)ExceptionVector.NonMaskableInterrupt);
    }

    /// <summary>Delivers INT n.</summary>
    /// <returns>False for a triple fault.</returns>
    internal bool DeliverSoftware(byte vector, ulong returnAddress)
    {
        ulong start = vcpu.Regs.Rip;
        vcpu.Regs.Rip = returnAddress;
        if (TryDeliver(vector, EventSource.Software, false, 0, out GuestFault fault))
        {
            return true;
        }

        vcpu.Regs.Rip = start;
        return DeliverFault(fault);
    }

    private bool TryDeliver(byte vector, EventSource source, bool hasErrorCode, uint errorCode, out GuestFault fault)
    {
        uint external = source == EventSource.Hardware ? 1u : 0;
        uint selectorError = ((uint)vector << 3) | (uint)IdtErrorCode | external;
        fault = new GuestFault(ExceptionVector.GeneralProtection, selectorError);
        if ((vector * GateSize) + GateSize - 1 > state.IdtLimit)
        {
            return false;
        }

        Span<ulong> gate = stackalloc ulong[2];
        if (!access.TryRead(state.IdtBase + (ulong)(vector * GateSize), MemoryMarshal.AsBytes(gate), PageAccess.Read))
        {
            fault = access.Fault;
            return false;
        }

        Gate descriptor = new(gate[0], gate[1]);
        if (!descriptor.IsInterruptOrTrap || (source == EventSource.Software && descriptor.Privilege < state.Cpl))
        {
            return false;
        }

        if (!descriptor.Present)
        {
            fault = new GuestFault(ExceptionVector.SegmentNotPresent, selectorError);
            return false;
        }

        if (!TryStack(descriptor.StackTable, out ulong top))
        {
            fault = access.Fault;
            return false;
        }

        ref KvmRegs regs = ref vcpu.Regs;
        Span<ulong> frame = stackalloc ulong[FrameWords];
        frame[0] = errorCode;
        frame[1] = regs.Rip;
        frame[2] = state.CodeSelector;
        frame[3] = GuestFlags;
        frame[4] = regs.Rsp;
        frame[5] = state.StackSelector;
        ReadOnlySpan<ulong> pushed = hasErrorCode ? frame : frame[1..];
        ulong rsp = (top & ~(StackAlignment - 1)) - ((ulong)pushed.Length * sizeof(ulong));
        if (!access.TryWrite(rsp, MemoryMarshal.AsBytes(pushed), PageAccess.Read))
        {
            fault = access.Fault;
            return false;
        }

        if (state.UserMode)
        {
            state.StackSelector = CpuState.NullSelector;
        }

        state.Cpl = 0;
        state.CodeSelector = descriptor.Selector;
        if (descriptor.ClearsInterruptFlag)
        {
            state.InterruptFlag = false;
        }

        regs.Rip = descriptor.Target;
        regs.Rsp = rsp;
        regs.Rflags &= ~(ulong)(Rflags.Trap | Rflags.NestedTask | Rflags.Resume | Rflags.AlignmentCheck);
        return true;
    }

    private bool TryStack(int stackTable, out ulong top)
    {
        if (stackTable != 0)
        {
            return access.TryRead(
                state.TaskBase + InterruptStackTableOffset + ((ulong)(stackTable - 1) * sizeof(ulong)), PageAccess.Read, out top);
        }

        if (state.UserMode)
        {
            return access.TryRead(state.TaskBase + Rsp0Offset, PageAccess.Read, out top);
        }

        top = vcpu.Regs.Rsp;
        return true;
    }

    /// <summary>A gate of the IDT (AMD APM vol. 2, 4.8.4).</summary>
    private readonly struct Gate(ulong low, ulong high)
    {
        private const int InterruptGate = 0xE;
        private const int TrapGate = 0xF;

        internal ulong Target => (low & 0xFFFF) | ((low >> 32) & 0xFFFF_0000) | (high << 32);

        internal ushort Selector => (ushort)(low >> 16);

        internal int StackTable => (int)(low >> 32) & 7;

        internal int Privilege => (int)(low >> 45) & 3;

        internal bool Present => ((low >> 47) & 1) != 0;

        internal bool IsInterruptOrTrap => Type is InterruptGate or TrapGate && ((low >> 44) & 1) == 0;

        internal bool ClearsInterruptFlag => Type == InterruptGate;

        private int Type => (int)(low >> 40) & 0xF;
    }
}
