using System.Diagnostics;
using System.Globalization;
using System.Text;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Emulation;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;
using Dmp.Kvm.Patching;
using Iced.Intel;

namespace Dmp.Kvm.Machine;

/// <summary>
/// One virtual CPU: enters guest code, and handles each exit on the thread that called <see cref="Run"/>. From exit to entry nothing
/// is allocated, logged or sent.
/// </summary>
internal sealed class Vcpu : IVcpu, IDisposable
{
    private const int ExceptionFrameWords = 5;
    private const ulong NoAddress = 1UL << 63; // Not canonical.
    private const long StartUpLookNanoseconds = 1_000_000;
    private const int NoProgressLimit = 4096;
    private const byte BreakpointOpcode = 0xCC;
    private const int LastExits = 16;

    private readonly SharedMachine machine;
    private readonly KvmVcpu kvm;
    private readonly RealRegisters real;
    private readonly CpuState state;
    private readonly EmulationContext context;
    private readonly SensitiveInstructions emulator;
    private readonly MmioInstructions mmio;
    private readonly EventDelivery events;
    private readonly GuestAccess access;
    private readonly VirtualTlb tlb;
    private readonly MemoryFaults faults;
    private readonly TlbAudit? audit;
    private readonly InstructionFetcher fetcher;
    private readonly StartUpPhase startUp;
    private readonly Chipset chipset;
    private readonly ulong frameOffset;
    private readonly ImplantMap? implants;
    private readonly ImplantPosition position;
    private readonly CpuidTable cpuid;
    private readonly ImplantEndOfInterrupt endOfInterrupt;
    private readonly RecentExits recent = new(LastExits);

    private readonly VcpuDoorbell doorbell;
    private readonly InactiveStates inactive;
    private readonly LocalApic apic;

    private KvmRegs savedRegs;
    private KvmSregs savedSregs;
    private bool midGuest;
    private bool interruptShadow;

    // The guest's last #BP, and the interrupt flag at it: whose instruction runs in a slot.
    private ulong breakpoint;
    private bool breakpointInterrupts;

    // Where the guest was entered with interrupts held off: a kick that finds it there still holds them off once more.
    private ulong shadowedRip = NoAddress;

    private long leftGuest;
    private int samePlace;
    private ulong samePlaceRip;
    private ulong breakpointGuessRip;

    // What the code was like when the guest was entered.
    private long enteredGeneration;

    internal Vcpu(SharedMachine machine, KvmVm vm, int index)
    {
        this.machine = machine;
        Index = index;
        chipset = machine.Chipset;
        apic = chipset.LocalApics[index];
        doorbell = new VcpuDoorbell(machine.Clock);
        inactive = new InactiveStates(machine, index, doorbell);
        kvm = vm.CreateVcpu(index);
        kvm.SetCpuid(machine.KvmCpuid(index));
        ShadowProgram shadow = new(machine.Monitor, index, machine.RemovalsNeedFlush, RunMonitorCode);
        state = new CpuState(new VcpuPage(machine.Monitor, index));
        implants = machine.Patches?.Map;
        position = new ImplantPosition(implants, kvm, state.Page);
        endOfInterrupt = new ImplantEndOfInterrupt(apic, state.Page);
        cpuid = new CpuidTable(machine.Cpuid, index, machine.Monitor);
        tlb = new VirtualTlb(
            shadow,
            machine.Memory.FrameLimit,
            MonitorImage.Pml4Slot,
            MonitorImage.Pml4Entry,
            implants is null ? 0 : MonitorImage.ExposedEntry(index),
            state.Page);
        access = new GuestAccess(machine.Memory, machine.Code, state, ReleaseCode);
        events = new EventDelivery(kvm, state, access);
        fetcher = new InstructionFetcher(access);
        faults = new MemoryFaults(machine.Memory, machine.Code, state, tlb, access, machine.Shootdown, index, CreateCheckedRoot());
        audit = machine.Audit ? new TlbAudit(machine.Memory, machine.Code, state, tlb, machine.Clock, chipset.LocalApics.Count == 1) : null;
        context = new EmulationContext
        {
            Index = index,
            Vcpu = kvm,
            State = state,
            Access = access,
            Memory = machine.Memory,
            Tlb = tlb,
            Events = events,
            Chipset = chipset,
            Cpuid = machine.Cpuid,
            Clock = machine.Clock,
            ParavirtualClock = machine.ParavirtualClock,
            UnownedMsrs = machine.UnownedMsrs,
        };
        emulator = new SensitiveInstructions(context);
        mmio = new MmioInstructions(context);
        frameOffset = MachineLayout.VcpuBlock(index) + MachineLayout.StackTopOffset - (ExceptionFrameWords * sizeof(ulong));
        real = new RealRegisters(kvm, index, machine.SupportedCpuid, machine.MonitorIsNative ? machine.Monitor : null);
        startUp = new StartUpPhase(context, kvm, real, Exits, machine.Code, machine.WatchesMsrs, frame => faults.Release(frame, refill: false));
    }

    /// <inheritdoc/>
    public int Index { get; }

    /// <inheritdoc/>
    public ExitTable Exits { get; } = new();

    /// <inheritdoc/>
    public WakeClock WakeClock => doorbell.Wakes;

    /// <summary>Virtual CPU state, for loading the boot state and for specs.</summary>
    internal CpuState State => state;

    /// <summary>Registers, for loading the boot state and for specs. Only while Run is not executing.</summary>
    internal KvmVcpu Registers => kvm;

    /// <summary>What runs before 64-bit mode. Begun by the boot and by SIPIs, only while Run is not executing or by its thread.</summary>
    internal StartUpPhase StartUp => startUp;

    /// <summary>The TLB, for counters and audits.</summary>
    internal VirtualTlb Tlb => tlb;

    /// <summary>The audit of the TLB, when the machine has it switched on.</summary>
    internal TlbAudit? Audit => audit;

    /// <summary>Called before each emulated instruction; specs throw from it.</summary>
    internal Action? BeforeEmulation { get; set; }

    /// <inheritdoc/>
    public void RequestPause() => doorbell.RequestPause();

    /// <summary>Takes the vCPU out of guest code or a halt, to look at what is new. Any thread.</summary>
    internal void Kick() => doorbell.Kick();

    /// <summary>As <see cref="Kick"/>, at a time. Any thread.</summary>
    internal void KickAt(long nanoseconds) => doorbell.KickAt(nanoseconds);

    /// <inheritdoc/>
    public VcpuStop Run()
    {
        using KickSignal own = new();
        doorbell.Begin(own);
        kvm.SetSignalMask(own.MaskInGuest);
        chipset.BeginRun(Index);
        leftGuest = Stopwatch.GetTimestamp();
        RunTimers();
        try
        {
            return Loop();
        }
        finally
        {
            machine.Shootdown.Leave(Index);
            doorbell.End();
        }
    }

    /// <inheritdoc/>
    public string DescribeState() => startUp.IsActive
        ? startUp.Describe()
        : VcpuDescription.Describe(kvm, state, fetcher, recent, Exits);

    /// <inheritdoc/>
    public void Dispose() => kvm.Dispose();

    private VcpuStop Loop()
    {
        while (true)
        {
            doorbell.BeforeLook();
            if (machine.Control.Stop is { } stop)
            {
                return stop;
            }

            if (!midGuest && !position.InsideTemplate && (apic.HasInit || apic.IsWaitingForStartUp))
            {
                if (WaitForStartUp() is { } final)
                {
                    return final;
                }

                continue;
            }

            if (startUp.IsActive)
            {
                if (RunStartUp() is { } ended)
                {
                    return ended;
                }

                continue;
            }

            if (!midGuest && position.InsideTemplate)
            {
                // Nothing may happen to the guest here. It is over in a moment.
                if (doorbell.PauseIsRequested || chipset.HasPending(Index))
                {
                    LookAgainSoon();
                }

                LoadRealRegisters();
            }
            else if (!midGuest)
            {
                if (doorbell.TakePause())
                {
                    return new VcpuStop.Paused();
                }

                if (!TryDeliverInterrupt())
                {
                    return TripleFault();
                }

                LoadRealRegisters();
            }

            KvmExitReason reason = EnterGuest();
            VcpuStop? end = reason switch
            {
                KvmExitReason.Io => Dispatch(kvm.Exit.IoPort),
                KvmExitReason.Interrupted => Interrupted(),
                _ => HostTrouble(reason),
            };
            if (end != null)
            {
                return end;
            }
        }
    }

    /// <summary>One entry before 64-bit mode. KVM keeps what is in the middle of something there, so that every exit is a safe point.</summary>
    private VcpuStop? RunStartUp()
    {
        if (doorbell.TakePause())
        {
            return new VcpuStop.Paused();
        }

        if (startUp.WantsKicks)
        {
            chipset.LookAgainAt(Index, machine.Clock.Nanoseconds + StartUpLookNanoseconds);
        }

        midGuest = !startUp.BeforeEntry();
        KvmExitReason reason = EnterGuest();

        // The virtual TLB is empty in this phase: nothing is asked of it that could not be done now.
        machine.Shootdown.Leave(Index);
        switch (startUp.AfterExit(reason))
        {
            case StartUpResult.Kicked:
                doorbell.Consume();
                RunTimers();
                return null;
            case StartUpResult.Halted:
                return Halt();
            case StartUpResult.Failed:
                return Failed(startUp.Failure);
            case StartUpResult.Unexpected:
                return HostTrouble(reason);
            default:
                return null;
        }
    }

    /// <summary>INIT came, or no SIPI yet: nothing of the guest runs on this vCPU until there is one.</summary>
    private VcpuStop? WaitForStartUp()
    {
        InactiveEnd end = inactive.WaitForStartUp(out byte vector);
        leftGuest += inactive.TakeSlept();
        switch (end)
        {
            case InactiveEnd.Awake:
                position.Forget();
                interruptShadow = false;
                state.NmiBlocked = false;
                faults.ForgetStep();
                tlb.FlushAll();
                startUp.Begin(vector);
                return null;
            case InactiveEnd.Pause when doorbell.TakePause():
                return new VcpuStop.Paused();
            default:
                return null;
        }
    }

    private void LookAgainSoon() => chipset.LookAgainAt(Index, machine.Clock.Nanoseconds + machine.KickRetryNanoseconds);

    private KvmExitReason EnterGuest()
    {
        // Also in the middle of something: the guest may go on from there for a while.
        if (implants is not null)
        {
            endOfInterrupt.BeforeEntry();
        }

        while (!midGuest && !machine.Shootdown.TryEnter(Index))
        {
            machine.Shootdown.Serve(Index, tlb);
        }

        long before = Stopwatch.GetTimestamp();
        KvmExitReason reason = kvm.Run(loadRegisters: !midGuest);
        long after = Stopwatch.GetTimestamp();
        doorbell.AfterExit();
        if (reason != KvmExitReason.Interrupted)
        {
            machine.Shootdown.Leave(Index);
        }

        endOfInterrupt.AfterExit();
        Exits.AddTime(before - leftGuest, after - before);
        leftGuest = after;
        midGuest = false;
        if (chipset.Uart.HasTransmitted)
        {
            chipset.Uart.PutOutTransmitted();
        }

        return reason;
    }

    /// <summary>The guest's registers are in place but for what is ours: segments, root, forced flags.</summary>
    private void LoadRealRegisters()
    {
        // Before it is looked up where RIP leads: what changes behind this may not be what runs.
        enteredGeneration = machine.Code.Generation;
        if (state.UserMode)
        {
            audit?.Sample();
        }

        if (tlb.LoadedCold)
        {
            tlb.LoadedCold = false;
            faults.AfterColdLoad();
        }

        if (implants is not null && !state.UserMode)
        {
            state.Page[VcpuPageField.InterruptPending] =
                !state.InterruptFlag && chipset.InterruptPending(Index) ? 1UL : 0;
            bool slowReturn = audit is not null || (state.Cr4 & Cr4.TimeStampDisable) != 0 || faults.Stepping;
            state.Page[VcpuPageField.UserRoot] = slowReturn ? 0 : tlb.Root(userView: true);
            state.Page[VcpuPageField.SlowRootLoad] = tlb.LoadsSlowly || slowReturn ? 1UL : 0;
            cpuid.Refresh(state);
            kvm.Regs.Rip = implants.RealAddress(kvm.Regs.Rip);
        }

        real.Load(state, tlb.Root(state.UserMode && !position.InsideTemplate), faults.Stepping);
    }

    /// <summary>
    /// Whether the guest stopped with the kernel view loaded. An implant that returns to user code enters user mode before its gate loads
    /// the user view: a guest that single-steps stops in between.
    /// </summary>
    private bool IsInKernelView => kvm.Sregs.Cr3 == tlb.Root(userView: false);

    private void LeaveImplant() => interruptShadow = position.Find() ?? interruptShadow;

    private VcpuStop? Dispatch(ushort port)
    {
        if (port == MachineLayout.SyscallPort)
        {
            // SYSCALL entered CPL 0: only RIP and the flags are not the guest's, and both are about to be set.
            return SystemCall();
        }

        Span<ulong> frame = System.Runtime.InteropServices.MemoryMarshal.Cast<byte, ulong>(
            machine.Monitor.Slice(frameOffset, ExceptionFrameWords * sizeof(ulong)));
        ref KvmRegs regs = ref kvm.Regs;
        regs.Rip = frame[0];
        regs.Rflags = frame[2];
        regs.Rsp = frame[3];
        NoteUserSelectors((ushort)frame[1], (ushort)frame[4]);
        uint error = (uint)machine.Monitor.Word(frameOffset - sizeof(ulong));
        ExceptionVector vector = (ExceptionVector)port;
        position.Forget();
        if (!state.UserMode || IsInKernelView)
        {
            LeaveImplant();
        }

        recent.Add((byte)port, regs.Rip, kvm.Sregs.Cr2, error);
        switch (vector)
        {
            case ExceptionVector.PageFault:
                return PageFault(kvm.Sregs.Cr2, (PageFaultError)error);
            case ExceptionVector.GeneralProtection:
            case ExceptionVector.InvalidOpcode:
                return !state.UserMode && position.IsInsideWindow(regs.Rip)
                    ? EnterImplant(regs.Rip)
                    : Sensitive(new GuestFault(vector, error));
            case ExceptionVector.Debug:
                return Debug();
            case ExceptionVector.DoubleFault:
                throw new InvalidOperationException("a double fault inside the monitor");
            default:
                Exits.Count(ExitKind.GuestFault, regs.Rip);
                if (vector == ExceptionVector.Breakpoint)
                {
                    breakpoint = regs.Rip - 1;
                    breakpointInterrupts = state.InterruptFlag;
                }

                return Reflect(new GuestFault(vector, error), vector is ExceptionVector.Breakpoint or ExceptionVector.Overflow
                    ? EventSource.Software
                    : EventSource.Hardware);
        }
    }

    /// <summary>The bytes inside a window fault: the guest goes on in the implant.</summary>
    private VcpuStop? EnterImplant(ulong rip)
    {
        Exits.Count(ExitKind.Other, rip);
        return CheckProgress(rip);
    }

    /// <summary>User code may have gone to other segments of its own, for example to 32-bit code by a far jump.</summary>
    private void NoteUserSelectors(ushort code, ushort stack)
    {
        if (state.UserMode)
        {
            state.CodeSelector = code;
            state.StackSelector = stack;
        }
    }

    private VcpuStop? PageFault(ulong address, PageFaultError error)
    {
        ref KvmRegs regs = ref kvm.Regs;
        if (address == MonitorImage.SyscallEntry && regs.Rip == address && state.UserMode)
        {
            // SYSCALL stayed at CPL 3 and could not fetch the monitor's entry.
            return SystemCall();
        }

        faults.NoteGuestFlags(regs.Rflags);
        MemoryFaultResult result = faults.Handle(address, error, position.GuestRip);
        Exits.Count(result.Kind, position.GuestRip);
        switch (result.Action)
        {
            case MemoryFaultAction.Retry:
                return CheckProgress(regs.Rip);
            case MemoryFaultAction.Reflect:
                return Reflect(result.Fault);
            default:
                return Emulate(mmioAccess: true, default);
        }
    }

    private VcpuStop? CheckProgress(ulong rip)
    {
        samePlace = rip == samePlaceRip ? samePlace + 1 : 0;
        samePlaceRip = rip;
        return samePlace < NoProgressLimit ? null : Failed("no progress: the same instruction faults again and again");
    }

    private VcpuStop? SystemCall()
    {
        Exits.Count(ExitKind.Syscall, kvm.Regs.Rcx);
        return Finish(emulator.EnterSystemCall(), default, default);
    }

    private VcpuStop? Sensitive(in GuestFault fault) => Emulate(mmioAccess: false, fault);

    /// <summary>Whether another vCPU has changed code since the entry: what trapped may not stand there any more.</summary>
    private bool CodeHasChanged => machine.Code.Generation != enteredGeneration;

    private VcpuStop? Emulate(bool mmioAccess, in GuestFault fault)
    {
        BeforeEmulation?.Invoke();
        position.UndoTemplate();
        ref KvmRegs regs = ref kvm.Regs;
        bool found = fetcher.TryFetch(regs.Rip, state.CodeSelector == MonitorSegments.CompatibilityCodeSelector,
            out Instruction instruction, out bool isTrap);
        if (mmioAccess)
        {
            Outcome access = found ? mmio.Execute(instruction) : Outcome.Unsupported;
            if (access == Outcome.Unsupported && CodeHasChanged)
            {
                return CheckProgress(regs.Rip);
            }

            return found ? Finish(access, fault, instruction) : Failed("cannot read the instruction at RIP");
        }

        if (!found)
        {
            Exits.Count(ExitKind.GuestFault, regs.Rip);
            return Reflect(fault);
        }

        if (instruction.Mnemonic == Mnemonic.Hlt
            && !state.UserMode
            && faults.TryReadCopiedTrap(regs.Rip, breakpoint, out byte meant)
            && fetcher.TryDecode(meant, regs.Rip, out Instruction copied))
        {
            return EmulateCopied(copied, fault);
        }

        // Counted before it runs: RIP is still the site, and an exception thrown on the way has its site on record.
        ulong site = regs.Rip;
        Outcome outcome = state.UserMode ? emulator.ExecuteForUser(instruction) : emulator.Execute(instruction);
        if (outcome == Outcome.NotSensitive && CodeHasChanged)
        {
            Exits.Count(ExitKind.CodeScan, site);
            return CheckProgress(site);
        }

        if (outcome == Outcome.NotSensitive && isTrap && faults.TryReveal(site))
        {
            Exits.Count(ExitKind.CodeScan, site);
            return CheckProgress(site);
        }

        Exits.Count(KindOf(outcome, instruction, isTrap && SilentInstructions.IsSilent(instruction)), site);
        return Finish(outcome, fault, instruction);
    }

    /// <summary>
    /// A probe executes what it copied from where a trap of ours stood: PUSHF or POPF, the only ones of one byte. The kernel, which takes it
    /// for a HLT, has cleared IF for the step, and sets it again at the INT3 behind if it was set at the probe. Where it can read the
    /// instruction, it does with the flags of the probe what this does (Linux, arch/x86/kernel/kprobes/core.c, kprobe_emulate_ifmodifiers).
    /// </summary>
    private VcpuStop? EmulateCopied(in Instruction instruction, in GuestFault fault)
    {
        Exits.Count(ExitKind.Silent, kvm.Regs.Rip);
        bool pushes = instruction.Mnemonic == Mnemonic.Pushfq;
        bool interrupts = state.InterruptFlag;
        if (pushes)
        {
            state.InterruptFlag = breakpointInterrupts;
        }

        Outcome outcome = emulator.Execute(instruction);
        if (pushes)
        {
            state.InterruptFlag = interrupts;
        }

        VcpuStop? stop = Finish(outcome, fault, instruction);

        // Nothing comes between a step and the INT3 behind it.
        interruptShadow |= outcome == Outcome.Done && !pushes;
        return stop;
    }

    private static ExitKind KindOf(Outcome outcome, in Instruction instruction, bool isTrap)
    {
        if (isTrap)
        {
            return ExitKind.Silent;
        }

        return outcome switch
        {
            Outcome.NotSensitive => ExitKind.GuestFault,
            Outcome.Halt => ExitKind.Halt,
            _ => instruction.Mnemonic is Mnemonic.In or Mnemonic.Out or Mnemonic.Insb or Mnemonic.Insw or Mnemonic.Insd
                or Mnemonic.Outsb or Mnemonic.Outsw or Mnemonic.Outsd
                ? ExitKind.Io
                : ExitKind.Privileged,
        };
    }

    private VcpuStop? Finish(Outcome outcome, in GuestFault fault, in Instruction instruction)
    {
        switch (outcome)
        {
            case Outcome.Done:
                kvm.Regs.Rip = instruction.NextIP;

                // The trap that brought us here has set it; an instruction that is over has cleared it (AMD APM vol. 2, 3.1.6).
                kvm.Regs.Rflags &= ~(ulong)Rflags.Resume;
                interruptShadow = instruction.Mnemonic == Mnemonic.Sti && ReliesOnShadow(instruction.NextIP);
                return SingleStepped();
            case Outcome.Jumped:
                return null;
            case Outcome.Fault:
                return Reflect(context.Fault);
            case Outcome.NotSensitive:
                return Reflect(fault);
            case Outcome.Halt:
                kvm.Regs.Rip = instruction.NextIP;

                // It may have stood behind an STI; what ends the halt is taken at once.
                interruptShadow = false;
                return Halt();
            case Outcome.Shutdown:
                return TripleFault();
            case Outcome.LeavesLongMode:
                tlb.FlushAll();
                startUp.Resume();
                return null;
            default:
                return Failed($"cannot emulate this instruction: {instruction}");
        }
    }

    /// <summary>
    /// Whether the instruction behind an STI must not be preceded by an interrupt: it ends a wait, or it leaves. Any other cannot tell an
    /// interrupt before it from one behind it, and code that disables interrupts again soon would never get one.
    /// </summary>
    private bool ReliesOnShadow(ulong rip) =>
        fetcher.TryFetch(rip, compatibility: false, out Instruction next, out _)
        && next.Mnemonic is Mnemonic.Hlt or Mnemonic.Mwait or Mnemonic.Iretq or Mnemonic.Sysretq or Mnemonic.Sysret or Mnemonic.Sysexit
            or Mnemonic.Cli or Mnemonic.Sti or Mnemonic.Popfq;

    /// <summary>An emulated instruction ended with TF set: the guest gets its #DB as if it had run natively.</summary>
    private VcpuStop? SingleStepped()
    {
        if ((kvm.Regs.Rflags & (ulong)Rflags.Trap) == 0)
        {
            return null;
        }

        state.Dr6 |= (ulong)Dr6.SingleStep;
        return Reflect(new GuestFault(ExceptionVector.Debug));
    }

    private VcpuStop? Debug()
    {
        ref KvmRegs regs = ref kvm.Regs;
        if (position.InsideInstruction)
        {
            // The guest single-steps, and its instruction is not over yet: the jump to the implant is, or a part of a template.
            Exits.Count(ExitKind.GuestFault, position.GuestRip);
            position.GoOn();
            return null;
        }

        if (faults.Stepping)
        {
            Exits.Count(ExitKind.CodeWrite, regs.Rip);
            bool ours = faults.EndStep();
            if (ours)
            {
                regs.Rflags &= ~(ulong)Rflags.Trap;
                return null;
            }
        }

        Exits.Count(ExitKind.GuestFault, regs.Rip);
        if (!IsAtDebugTrapInstruction(regs.Rip))
        {
            state.Dr6 |= (ulong)Dr6.SingleStep;
        }

        return Reflect(new GuestFault(ExceptionVector.Debug));
    }

    /// <summary>
    /// Whether a #DB comes from INT1 (F1) rather than from a single step. TF in the pushed flags does not tell: an instruction that
    /// clears TF is followed by one more trap. Hosts differ in whether RIP is at the INT1 or behind it.
    /// </summary>
    private bool IsAtDebugTrapInstruction(ulong rip)
    {
        const byte Int1Opcode = 0xF1;
        return CodeByte(rip) == Int1Opcode || CodeByte(rip - 1) == Int1Opcode;
    }

    /// <summary>A byte of guest code, or -1 where none can be fetched.</summary>
    private int CodeByte(ulong address)
    {
        Span<byte> bytes = stackalloc byte[1];
        return access.Fetch(address, bytes, out _) == bytes.Length ? bytes[0] : -1;
    }

    private VcpuStop? Reflect(in GuestFault fault, EventSource source = EventSource.Hardware)
    {
        position.UndoTemplate();
        if (faults.Stepping && faults.EndStep())
        {
            kvm.Regs.Rflags &= ~(ulong)Rflags.Trap;
        }

        return events.DeliverFault(fault, source) ? null : TripleFault();
    }

    private bool TryDeliverInterrupt()
    {
        if (interruptShadow)
        {
            // STI holds interrupts off until the next instruction is over. Nothing tells when it is: look again very soon.
            interruptShadow = false;
            shadowedRip = kvm.Regs.Rip;
            if (chipset.HasPending(Index))
            {
                LookAgainSoon();
            }

            return true;
        }

        shadowedRip = NoAddress;
        if (apic.HasNmi && !state.NmiBlocked && !faults.Stepping)
        {
            return !apic.TakeNmi() || events.DeliverNmi();
        }

        if (!state.InterruptFlag || faults.Stepping || !chipset.InterruptPending(Index)
            || !chipset.TryAcknowledge(Index, out byte vector))
        {
            return true;
        }

        return events.DeliverInterrupt(vector);
    }

    /// <summary>HLT: waits for an interrupt without using the CPU.</summary>
    private VcpuStop? Halt()
    {
        InactiveEnd end = inactive.Halt(state.InterruptFlag, state.NmiBlocked);
        leftGuest += inactive.TakeSlept();
        switch (end)
        {
            case InactiveEnd.Awake:
                return null;
            case InactiveEnd.Never:
                return Failed("the guest halted with interrupts disabled: it will never run again");
            default:
                // A pause or the end: the vCPU stops at the HLT and will execute it again. An interrupt that comes in between has to be taken
                // behind it, or the guest, back from its handler, halts without having looked at what the interrupt was for.
                kvm.Regs.Rip -= 1;
                interruptShadow = true;
                return null;
        }
    }

    private void RunTimers()
    {
        chipset.RunDue(Index, machine.Clock.Nanoseconds);
    }

    private VcpuStop? Interrupted()
    {
        doorbell.Consume();
        bool safe = IsAtSafePoint();
        Exits.Count(ExitKind.Kick, kvm.Regs.Rip);
        if (!safe)
        {
            // An exception is on its way into the monitor: go on exactly as it is, and look again very soon.
            midGuest = true;
            LookAgainSoon();
            RunTimers();
            return null;
        }

        machine.Shootdown.Leave(Index);
        interruptShadow |= kvm.Regs.Rip == shadowedRip;
        RunTimers();
        return null;
    }

    /// <summary>
    /// Whether the interrupted vCPU is between two guest instructions. It is not when KVM holds an exception, when a stub of the
    /// monitor runs, or when RIP is behind an INT3 whose #BP KVM does not report.
    /// </summary>
    private bool IsAtSafePoint()
    {
        const int PrivilegeMask = 3;
        bool entered = !real.TryTakeBack();
        if (entered && ((kvm.Sregs.Cs.Selector & PrivilegeMask) == 0 || kvm.HasPendingException()))
        {
            return false;
        }

        ulong rip = kvm.Regs.Rip;
        if (entered && rip == MonitorImage.SyscallEntry)
        {
            return false;
        }

        if (entered && CodeByte(rip - 1) == BreakpointOpcode && breakpointGuessRip != rip)
        {
            // The byte may be padding in front of a function: seen twice in a row at the same RIP, it was no #BP.
            breakpointGuessRip = rip;
            return false;
        }

        LeaveImplant();
        if (position.HoldsOff)
        {
            position.GoOn();
            return false;
        }

        breakpointGuessRip = 0;
        if (entered)
        {
            NoteUserSelectors(kvm.Sregs.Cs.Selector, kvm.Sregs.Ss.Selector);
        }

        return true;
    }

    /// <summary>Runs monitor code at CPL 0 until its OUT; the guest's registers stay as they are.</summary>
    private void RunMonitorCode(ulong address)
    {
        savedRegs = kvm.Regs;
        savedSregs = kvm.Sregs;
        real.LoadForMonitor(address, tlb.Root(userView: false), MonitorImage.StackTop(Index));
        bool kicked = false;
        bool first = true;
        while (true)
        {
            KvmExitReason reason = kvm.Run(loadRegisters: first);
            first = false;
            if (reason == KvmExitReason.Io && kvm.Exit.IoPort == MachineLayout.ShadowProgramDonePort)
            {
                break;
            }

            if (reason != KvmExitReason.Interrupted)
            {
                throw new InvalidOperationException($"monitor code ended with {reason}, port {kvm.Exit.IoPort}");
            }

            doorbell.Consume();
            kicked = true;
        }

        kvm.Regs = savedRegs;
        kvm.Sregs = savedSregs;
        if (kicked)
        {
            // What the kick was for is looked at after the next entry, which this signal ends at once.
            doorbell.RingAgain();
        }
    }

    private CheckedRoot? CreateCheckedRoot() => implants is null
        ? null
        : new CheckedRoot(machine.Memory, tlb, state.Page, new TableWindows(machine.Memory, machine.Monitor, Index));

    private void ReleaseCode(ulong frame) => faults.Release(frame);

    private VcpuStop TripleFault() => Failed("triple fault: the guest's exception handlers cannot be reached");

    private VcpuStop Failed(string what) => new VcpuStop.GuestFailed(
        string.Create(CultureInfo.InvariantCulture, $"vCPU {Index} at 0x{kvm.Regs.Rip:x}: {what}"), DescribeState());

    private VcpuStop? HostTrouble(KvmExitReason reason)
    {
        if (reason is KvmExitReason.Shutdown)
        {
            return Failed("triple fault outside the monitor");
        }

        StringBuilder text = new();
        _ = text.Append(CultureInfo.InvariantCulture, $"KVM_RUN ended with {reason}");
        if (reason == KvmExitReason.InternalError)
        {
            _ = text.Append(CultureInfo.InvariantCulture, $" (suberror {kvm.Exit.InternalSubError})");
        }
        else if (reason == KvmExitReason.FailEntry)
        {
            _ = text.Append(CultureInfo.InvariantCulture, $" (hardware reason 0x{kvm.Exit.HardwareReason:x})");
        }

        return Failed(text.ToString());
    }
}
