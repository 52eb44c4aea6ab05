using System.Globalization;
using System.Text;
using Dmp.Kvm.Boot;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Emulation;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;
using Msr = Dmp.Kvm.Cpu.Msr;

namespace Dmp.Kvm.Machine;

/// <summary>What the vCPU does after an exit of the start-up phase.</summary>
internal enum StartUpResult
{
    /// <summary>The exit is answered: enter again.</summary>
    Continue,

    /// <summary>The vCPU was kicked: look at what is new, then enter again.</summary>
    Kicked,

    /// <summary>The guest executed HLT; RIP is behind it.</summary>
    Halted,

    /// <summary>The guest is in 64-bit mode: the phase is over, and <see cref="CpuState"/> has its state.</summary>
    Ended,

    /// <summary>The guest cannot go on: <see cref="StartUpPhase.Failure"/>.</summary>
    Failed,

    /// <summary>KVM returned for a reason that no guest should cause.</summary>
    Unexpected,
}

/// <summary>
/// Runs what cannot be deprivileged: code in real mode, in 32-bit protected mode and in compatibility mode runs natively at CPL 0, on its
/// own page tables and descriptors, until the vCPU is in 64-bit mode. Guest-physical addresses are machine addresses for RAM, so nothing
/// of the guest's has to be translated. Nobody enters 64-bit mode without a WRMSR that sets EFER.LME: where KVM shows it, the guest runs
/// freely until then and is stepped from then on, some tens of instructions; where it does not, all of the phase is stepped. A packed
/// kernel is an exception: it runs natively until it has unpacked itself and was seen in its own code. A kernel that never enters 64-bit mode stays in the phase. Belongs to the vCPU's thread.
/// </summary>
internal sealed class StartUpPhase
{
    private const Efer WritableEfer = Efer.SystemCall | Efer.LongModeEnable | Efer.NoExecuteEnable;
    private const int SelectorOfPageShift = 8;
    private const int HltLength = 1;

    /// <summary>Frames that real mode can reach.</summary>
    private const ulong RealModeFrames = (1UL << 20) / Paging.PageSize;
    private const ulong PcidMask = 0xFFF;
    private const int CodeBytesShown = 16;

    /// <summary>Where a processor begins after a reset (AMD APM vol. 2, 14.1.3).</summary>
    private const ulong ResetCodeBase = 0xFFFF_0000;

    // What the processor itself uses: these are in the hardware as long as the phase lasts. All others are only the model's.
    private static readonly Msr[] NativeMsrs =
    [
        Msr.Star, Msr.Lstar, Msr.Cstar, Msr.SyscallMask, Msr.KernelGsBase, Msr.SysenterCs, Msr.SysenterEsp, Msr.SysenterEip, Msr.TscAux,
    ];

    private readonly EmulationContext context;
    private readonly KvmVcpu kvm;
    private readonly RealRegisters real;
    private readonly ExitTable exits;
    private readonly CodePages code;
    private readonly bool watchesMsrs;
    private readonly Action<ulong> releaseCode;
    private readonly MsrInstructions msrs;

    // The code in which the phase ends, when it does not end with the first instruction in 64-bit mode.
    private (ulong Start, ulong Length)? nativeUntil;
    private bool loadRegisters;
    private bool stepping;
    private bool unfinished;

    // Of the last entry or exit: KVM resets a vCPU of an AMD processor before it reports a triple fault.
    private KvmRegs lastRegs;
    private KvmSregs lastSregs;

    /// <summary>The phase of a vCPU, not begun.</summary>
    /// <param name="context">The vCPU as emulation sees it.</param>
    /// <param name="kvm">The same vCPU.</param>
    /// <param name="real">Restores the deprivileged world's registers.</param>
    /// <param name="exits">Counts exits.</param>
    /// <param name="code">The scanned frames.</param>
    /// <param name="watchesMsrs">Whether KVM returns for RDMSR and WRMSR.</param>
    /// <param name="releaseCode">Gives a scanned frame back.</param>
    internal StartUpPhase(
        EmulationContext context,
        KvmVcpu kvm,
        RealRegisters real,
        ExitTable exits,
        CodePages code,
        bool watchesMsrs,
        Action<ulong> releaseCode)
    {
        this.context = context;
        this.kvm = kvm;
        this.real = real;
        this.exits = exits;
        this.code = code;
        this.watchesMsrs = watchesMsrs;
        this.releaseCode = releaseCode;
        msrs = new MsrInstructions(context);
    }

    /// <summary>Whether the vCPU is in the phase.</summary>
    internal bool IsActive { get; private set; }

    /// <summary>Whether the end of the phase shows only when the vCPU is kicked from time to time.</summary>
    internal bool WantsKicks => nativeUntil is not null;

    /// <summary>Why the guest cannot go on, after <see cref="StartUpResult.Failed"/>.</summary>
    internal string Failure { get; private set; } = "";

    private CpuState State => context.State;

    private ulong LinearRip => kvm.Sregs.Cs.Base + kvm.Regs.Rip;

    /// <summary>Whether registers are those of 64-bit code of ring 0: what ends the phase.</summary>
    internal static bool IsSixtyFourBit(in KvmSregs sregs) =>
        ((Efer)sregs.Efer & Efer.LongModeActive) != 0 && sregs.Cs.L != 0 && sregs.Cs.Dpl == 0;

    /// <summary>
    /// A SIPI: the vCPU begins in real mode, at the beginning of a page. Also when it is in the middle of something; nothing of that is left.
    /// </summary>
    /// <param name="vector">The page.</param>
    internal void Begin(byte vector)
    {
        Leave();
        nativeUntil = null;
        foreach (ulong frame in code.FramesBelow(RealModeFrames))
        {
            // Traps are for 64-bit code at CPL 3, and another processor may have come this way before.
            releaseCode(frame);
        }

        ResetRegisters();
        kvm.Sregs = NativeSegments.RealMode((ushort)(vector << SelectorOfPageShift), kvm.Sregs.ApicBase);
        Enter();
    }

    /// <summary>A kernel's 32-bit entry: flat segments, no paging, interrupts off.</summary>
    internal void Begin(BootState boot)
    {
        Leave();
        nativeUntil = boot.UnpacksItself ? (boot.KernelVirtualBase.Value, boot.KernelLength) : null;
        ResetRegisters();
        ref KvmSregs sregs = ref kvm.Sregs;
        sregs.Cr0 = (ulong)(Cr0.ProtectionEnable | Cr0.ExtensionType);
        sregs.Cs = NativeSegments.FlatCode(boot.CodeSelector);
        sregs.Ds = sregs.Es = sregs.Fs = sregs.Gs = sregs.Ss = NativeSegments.FlatData(boot.DataSelector);
        sregs.Gdt = new KvmDescriptorTable { Base = boot.GdtBase.Value, Limit = boot.GdtLimit };
        sregs.Idt = default;
        ref KvmRegs regs = ref kvm.Regs;
        regs.Rip = boot.Entry.Value;
        regs.Rsp = boot.StackTop.Value;
        regs.Rax = boot.Eax;
        regs.Rbx = boot.Ebx;
        regs.Rsi = boot.Esi;
        Enter();
    }

    /// <summary>
    /// The deprivileged guest is about to leave 64-bit mode: the instruction at RIP runs natively, and so does what follows until the vCPU
    /// is in 64-bit mode again.
    /// </summary>
    internal void Resume()
    {
        ref KvmSregs sregs = ref kvm.Sregs;
        sregs.Cs = MonitorSegments.Code(State.CodeSelector, 0);
        sregs.Ss = MonitorSegments.Data(State.StackSelector, 0);
        sregs.Ds = NativeSegments.Privileged(sregs.Ds);
        sregs.Es = NativeSegments.Privileged(sregs.Es);
        sregs.Fs = NativeSegments.Privileged(sregs.Fs);
        sregs.Gs = NativeSegments.Privileged(sregs.Gs);
        sregs.Tr = NativeSegments.Task(State.TaskSelector, State.TaskBase, State.TaskSelector == 0 ? NativeSegments.LimitAfterReset : State.TaskLimit);
        sregs.Ldt = NativeSegments.LdtAfterReset();
        sregs.Gdt = new KvmDescriptorTable { Base = State.GdtBase, Limit = State.GdtLimit };
        sregs.Idt = new KvmDescriptorTable { Base = State.IdtBase, Limit = State.IdtLimit };
        sregs.Cr0 = State.Cr0;
        sregs.Cr2 = State.Cr2;
        sregs.Cr3 = State.Cr3;
        sregs.Cr4 = (ulong)State.Cr4;
        sregs.Efer = (ulong)State.Efer;
        kvm.Regs.Rflags = context.Events.GuestFlags;
        nativeUntil = null;
        Enter();
    }

    /// <summary>Injects what waits, and arms the next step.</summary>
    /// <returns>Whether the registers are to be loaded.</returns>
    internal bool BeforeEntry()
    {
        if (stepping)
        {
            if (loadRegisters)
            {
                // The step is armed for the RIP that KVM knows.
                kvm.Exchange(loadRegisters: true);
                loadRegisters = false;
            }

            // Anew for each step: the guest's POPF takes TF away.
            if (!kvm.TryStep())
            {
                throw new HostUnsupportedException("This KVM cannot single-step a guest: code before 64-bit mode cannot run here.");
            }
        }
        else
        {
            Inject();
        }

        // RIP is another one when a halt ended without an interrupt: then HLT is executed again.
        bool load = loadRegisters || kvm.Regs.Rip != lastRegs.Rip;
        loadRegisters = false;
        unfinished = false;
        return load;
    }

    /// <summary>Answers an exit.</summary>
    internal StartUpResult AfterExit(KvmExitReason reason)
    {
        if (reason != KvmExitReason.Shutdown)
        {
            lastRegs = kvm.Regs;
            lastSregs = kvm.Sregs;
        }

        switch (reason)
        {
            case KvmExitReason.Debug:
                exits.Count(ExitKind.Other, LinearRip);
                return EndIfSixtyFourBit();
            case KvmExitReason.Io:
                exits.Count(ExitKind.Io, LinearRip);
                unfinished = true;
                AccessPort();
                return StartUpResult.Continue;
            case KvmExitReason.Mmio:
                exits.Count(ExitKind.Io, LinearRip);
                unfinished = true;
                AccessRegister();
                return StartUpResult.Continue;
            case KvmExitReason.ReadMsr:
                exits.Count(ExitKind.Privileged, LinearRip);
                unfinished = true;
                ReadMsr(kvm.Exit.MsrIndex);
                return StartUpResult.Continue;
            case KvmExitReason.WriteMsr:
                exits.Count(ExitKind.Privileged, LinearRip);
                unfinished = true;
                WriteMsr(kvm.Exit.MsrIndex, kvm.Exit.MsrData);
                return StartUpResult.Continue;
            case KvmExitReason.Hlt:
                exits.Count(ExitKind.Halt, LinearRip);
                return Halt();
            case KvmExitReason.Interrupted:
                exits.Count(ExitKind.Kick, LinearRip);
                if (nativeUntil is not null)
                {
                    _ = EndIfSixtyFourBit();
                }

                return StartUpResult.Kicked;
            case KvmExitReason.IrqWindowOpen or KvmExitReason.SetTaskPriority:
                exits.Count(ExitKind.Other, LinearRip);
                return StartUpResult.Continue;
            case KvmExitReason.Shutdown:
                return TripleFault();
            default:
                return StartUpResult.Unexpected;
        }
    }

    /// <summary>The vCPU's state as text. Only while it does not run.</summary>
    internal string Describe()
    {
        KvmRegs r = kvm.Regs;
        KvmSregs s = kvm.Sregs;
        StringBuilder text = new();
        CultureInfo culture = CultureInfo.InvariantCulture;
        _ = text.AppendLine(culture, $"rip {r.Rip:x16} rflags {r.Rflags:x8} before 64-bit mode, natively at CPL 0");
        _ = text.AppendLine(culture, $"rax {r.Rax:x16} rbx {r.Rbx:x16} rcx {r.Rcx:x16} rdx {r.Rdx:x16}");
        _ = text.AppendLine(culture, $"rsi {r.Rsi:x16} rdi {r.Rdi:x16} rbp {r.Rbp:x16} rsp {r.Rsp:x16}");
        _ = text.AppendLine(culture, $"cr0 {s.Cr0:x8} cr2 {s.Cr2:x16} cr3 {s.Cr3:x16} cr4 {s.Cr4:x8} efer {s.Efer:x}");
        _ = text.AppendLine(
            culture, $"cs {s.Cs.Selector:x4} base {s.Cs.Base:x8} {CodeSize(s)} bits, ss {s.Ss.Selector:x4} ds {s.Ds.Selector:x4}");
        _ = text.AppendLine(culture, $"gdt {s.Gdt.Base:x16} limit {s.Gdt.Limit:x4} idt {s.Idt.Base:x16} limit {s.Idt.Limit:x4}");
        _ = text.AppendLine(culture, $"code at cs:rip: {CodeAtRip()}");
        _ = text.AppendLine(culture, $"exits so far: {exits.Total()}");
        return text.ToString();
    }

    private static int CodeSize(in KvmSregs sregs) => sregs.Cs.L != 0 ? 64 : sregs.Cs.Db != 0 ? 32 : 16;

    private string CodeAtRip()
    {
        ulong linear = LinearRip;
        int length = (int)Math.Min(CodeBytesShown, Paging.PageSize - (linear & Paging.PageOffsetMask));
        return kvm.TryTranslate(linear, out ulong physical) && context.Memory.Contains(new(physical), (ulong)length)
            ? Convert.ToHexString(context.Memory.Slice(new(physical), length))
            : "none";
    }

    /// <summary>What INIT leaves of the registers (AMD APM vol. 2, table 14-1).</summary>
    private void ResetRegisters()
    {
        const uint FamilyLeaf = 1;
        kvm.Sregs = NativeSegments.AfterReset(kvm.Sregs.ApicBase);
        kvm.Regs = new KvmRegs
        {
            Rdx = context.Cpuid.Query(FamilyLeaf, 0, context.Index, State).Eax,
            Rflags = (ulong)Rflags.AlwaysOne,
        };
        Array.Clear(State.DebugAddress);
        State.Dr6 = (ulong)Dr6.Fixed;
        State.Dr7 = CpuState.Dr7AtReset;
    }

    /// <summary>Takes the vCPU out of a phase that is not over, and out of whatever instruction it is in.</summary>
    private void Leave()
    {
        if (unfinished)
        {
            kvm.Exchange(loadRegisters: false);
            unfinished = false;
        }

        if (IsActive)
        {
            EndDebugging();
            real.LoadFixed();
            IsActive = false;
        }

        kvm.ForgetPendingEvents();
    }

    private void Enter()
    {
        LoadNativeMsrs();
        KvmDebugRegs debug = new() { Dr6 = State.Dr6, Dr7 = State.Dr7 };
        debug.SetAddresses(State.DebugAddress);
        kvm.SetDebugRegs(debug);
        stepping = nativeUntil is null && (!watchesMsrs || ((Efer)kvm.Sregs.Efer & Efer.LongModeEnable) != 0);
        loadRegisters = true;
        IsActive = true;
        lastRegs = kvm.Regs;
        lastSregs = kvm.Sregs;
    }

    private void LoadNativeMsrs()
    {
        foreach (Msr msr in NativeMsrs)
        {
            if (msrs.TryRead((uint)msr, out ulong value))
            {
                _ = kvm.TrySetMsr((uint)msr, value);
            }
        }
    }

    private void EndDebugging()
    {
        if (stepping)
        {
            stepping = false;
            kvm.EndDebugging();
        }

        kvm.RequestInterruptWindow(false);
    }

    private StartUpResult EndIfSixtyFourBit()
    {
        bool early = nativeUntil is { } kernel && LinearRip - kernel.Start >= kernel.Length;
        if (!IsSixtyFourBit(kvm.Sregs) || early || kvm.HasPendingEvent())
        {
            return StartUpResult.Continue;
        }

        EndDebugging();
        Capture();
        real.LoadFixed();
        IsActive = false;

        // Whatever the TLB has is of an earlier life.
        context.Tlb.ForgetRoots();
        context.Tlb.FlushAll();
        context.Tlb.Load((ushort)((State.Cr4 & Cr4.Pcid) != 0 ? State.Cr3 & PcidMask : 0), keep: false);
        return StartUpResult.Ended;
    }

    /// <summary>The real state becomes the virtual one; what stays real (general registers, bases of FS and GS) stays as it is.</summary>
    private void Capture()
    {
        ref KvmSregs sregs = ref kvm.Sregs;
        ulong flags = kvm.Regs.Rflags;
        State.Cpl = 0;
        State.InterruptFlag = (flags & (ulong)Rflags.Interrupt) != 0;
        State.IoPrivilege = flags & (ulong)Rflags.IoPrivilege;
        State.Cr0 = sregs.Cr0;
        State.Cr2 = sregs.Cr2;
        State.Cr3 = sregs.Cr3;
        State.Cr4 = (Cr4)sregs.Cr4;
        State.Efer = (Efer)sregs.Efer;
        State.GdtBase = sregs.Gdt.Base;
        State.GdtLimit = sregs.Gdt.Limit;
        State.IdtBase = sregs.Idt.Base;
        State.IdtLimit = sregs.Idt.Limit;
        State.LdtSelector = sregs.Ldt.Selector;
        State.TaskSelector = sregs.Tr.Selector;
        State.TaskBase = sregs.Tr.Base;
        State.TaskLimit = sregs.Tr.Limit;
        State.CodeSelector = sregs.Cs.Selector;
        State.StackSelector = sregs.Ss.Selector;
        foreach (Msr msr in NativeMsrs)
        {
            if (kvm.TryGetMsr((uint)msr, out ulong value))
            {
                _ = msrs.TryWrite((uint)msr, value);
            }
        }

        if (kvm.TryGetXcr0(out ulong xcr0))
        {
            State.Xcr0 = xcr0;
        }

        KvmDebugRegs debug = kvm.GetDebugRegs();
        debug.GetAddresses(State.DebugAddress);
        State.Dr6 = debug.Dr6;
        State.Dr7 = debug.Dr7;
        kvm.SetDebugRegs(new KvmDebugRegs { Dr6 = (ulong)Dr6.Fixed, Dr7 = CpuState.Dr7AtReset });

        sregs.Ds = NativeSegments.Deprivileged(sregs.Ds, keepBase: false);
        sregs.Es = NativeSegments.Deprivileged(sregs.Es, keepBase: false);
        sregs.Fs = NativeSegments.Deprivileged(sregs.Fs, keepBase: true);
        sregs.Gs = NativeSegments.Deprivileged(sregs.Gs, keepBase: true);
    }

    private void Inject()
    {
        Chipset chipset = context.Chipset;
        if (chipset.LocalApics[context.Index].TakeNmi())
        {
            kvm.InjectNmi();
        }

        // Where a pause ended a halt, HLT is executed again first: an interrupt is to be taken behind it.
        bool wanted = chipset.InterruptPending(context.Index) && kvm.Regs.Rip == lastRegs.Rip;
        if (wanted && !loadRegisters && kvm.Exit.ReadyForInterrupt != 0 && chipset.TryAcknowledge(context.Index, out byte vector))
        {
            kvm.InjectInterrupt(vector);
            wanted = chipset.InterruptPending(context.Index);
        }

        kvm.RequestInterruptWindow(wanted);
    }

    private void AccessPort()
    {
        const byte In = 0;
        int size = kvm.Exit.IoSize;
        Span<byte> data = kvm.IoData;
        Span<byte> word = stackalloc byte[sizeof(uint)];
        for (; !data.IsEmpty; data = data[size..])
        {
            word.Clear();
            if (kvm.Exit.IoDirection == In)
            {
                _ = BitConverter.TryWriteBytes(word, context.Chipset.Ports.Read(kvm.Exit.IoPort, size));
                word[..size].CopyTo(data);
            }
            else
            {
                data[..size].CopyTo(word);
                context.Chipset.Ports.Write(kvm.Exit.IoPort, size, BitConverter.ToUInt32(word));
            }
        }
    }

    private void AccessRegister()
    {
        ulong address = kvm.Exit.MmioAddress;
        int size = (int)kvm.Exit.MmioLength;
        if (kvm.Exit.MmioIsWrite == 0)
        {
            kvm.AnswerMmio(context.Chipset.ReadMmio(context.Index, address, size));
            return;
        }

        ulong mask = size == sizeof(ulong) ? ulong.MaxValue : (1UL << (size * 8)) - 1;
        context.Chipset.WriteMmio(context.Index, address, size, kvm.Exit.MmioData & mask);
    }

    private void ReadMsr(uint index)
    {
        ulong value = kvm.Sregs.Efer;
        bool known = (Msr)index == Msr.Efer || msrs.TryRead(index, out value);
        if (!known)
        {
            context.UnownedMsrs.Count(index);
        }

        kvm.AnswerMsr(value, fault: !known);
    }

    private void WriteMsr(uint index, ulong value)
    {
        bool taken;
        switch ((Msr)index)
        {
            case Msr.Efer:
                taken = TryWriteEfer((Efer)value);
                break;
            case Msr.FsBase or Msr.GsBase:
                taken = kvm.TrySetMsr(index, value);
                break;
            default:
                taken = msrs.TryWrite(index, value);
                if (taken && Array.IndexOf(NativeMsrs, (Msr)index) >= 0)
                {
                    _ = kvm.TrySetMsr(index, value);
                }

                break;
        }

        if (!taken)
        {
            context.UnownedMsrs.Count(index);
        }

        kvm.AnswerMsr(0, fault: !taken);
    }

    private bool TryWriteEfer(Efer value)
    {
        // LMA follows LME and CR0.PG, whatever is written.
        value &= ~Efer.LongModeActive;
        if ((value & ~WritableEfer) != 0 || !kvm.TrySetMsr((uint)Msr.Efer, (ulong)value))
        {
            return false;
        }

        if (nativeUntil is null)
        {
            if ((value & Efer.LongModeEnable) != 0)
            {
                stepping = true;
            }
            else
            {
                EndDebugging();
            }
        }

        return true;
    }

    private StartUpResult Halt()
    {
        const byte HltOpcode = 0xF4;
        Span<byte> one = stackalloc byte[HltLength];
        if (kvm.TryTranslate(LinearRip - HltLength, out ulong physical)
            && (code.ReadOriginal(physical >> Paging.PageShift, (int)(physical & Paging.PageOffsetMask), one) || one[0] != HltOpcode))
        {
            // A trap for 64-bit code, which another vCPU runs on the same page, or which another has just taken away.
            Release(physical >> Paging.PageShift);
            kvm.Regs.Rip -= HltLength;
            return StartUpResult.Continue;
        }

        State.InterruptFlag = (kvm.Regs.Rflags & (ulong)Rflags.Interrupt) != 0;
        return StartUpResult.Halted;
    }

    /// <summary>Gives a scanned frame back, which takes the deprivileged world's registers for a moment.</summary>
    private void Release(ulong frame)
    {
        KvmRegs regs = kvm.Regs;
        KvmSregs sregs = kvm.Sregs;
        bool stepped = stepping;
        EndDebugging();
        real.LoadFixed();
        releaseCode(frame);
        kvm.Regs = regs;
        kvm.Sregs = sregs;
        LoadNativeMsrs();
        stepping = stepped;
        loadRegisters = true;
    }

    private StartUpResult TripleFault()
    {
        Failure = "triple fault before 64-bit mode";
        if (kvm.Sregs.Cs.Base == ResetCodeBase)
        {
            kvm.Regs = lastRegs;
            kvm.Sregs = lastSregs;
            Failure += "; the registers are those of the last exit before it";
        }

        return StartUpResult.Failed;
    }
}
