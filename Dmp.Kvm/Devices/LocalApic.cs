namespace Dmp.Kvm.Devices;

/// <summary>
/// One vCPU's local APIC (Intel SDM vol. 3, chapter 11), seen through x2APIC MSRs or, in xAPIC mode, through its MMIO window.
/// <para>
/// Threads: registers belong to the vCPU's own thread, which says so with <see cref="BindToCurrentThread"/>. Other threads only
/// post: they set a bit in IRR (and before it in TMR) or in <c>signals</c> by an interlocked operation, which is a full barrier,
/// and then kick the vCPU, which looks again after each kick. So what a poster wrote before is seen with the bit, and no bit is
/// missed. What posters read (mode, logical id, enable bit, processor priority, LVT) is published by volatile writes; a message
/// that crosses a change of these may be judged by the old value, as on a real bus.
/// </para>
/// <para>No member called while the guest runs allocates or takes a lock, but for the timer (its queue's lock).</para>
/// </summary>
public sealed class LocalApic : IMmioDevice
{
    /// <summary>First x2APIC MSR.</summary>
    public const uint FirstMsr = 0x800;

    /// <summary>Last x2APIC MSR.</summary>
    public const uint LastMsr = FirstMsr + (uint)ApicRegister.SelfIpi;

    /// <summary>The EOI register's x2APIC MSR.</summary>
    internal const uint EndOfInterruptMsr = FirstMsr + (uint)ApicRegister.EndOfInterrupt;

    /// <summary>IA32_TSC_DEADLINE.</summary>
    public const uint TscDeadlineMsr = 0x6E0;

    // Version 0x14 (integrated), six LVT entries (timer to error), no EOI-broadcast suppression.
    private const uint VersionValue = 0x14 | (5 << 16);
    private const int LvtCount = ApicRegister.LvtError - ApicRegister.LvtTimer + 1;
    private const int LvtModeShift = 8;
    private const Lvt LvtExtInt = (Lvt)((uint)DeliveryMode.ExtInt << LvtModeShift);
    private const Lvt LvtNmi = (Lvt)((uint)DeliveryMode.Nmi << LvtModeShift);
    private const byte FirstLegalVector = 16;
    private const int PriorityShift = 4;
    private const uint PriorityClass = 0xF0;
    private const uint SpuriousEnable = 1 << 8;
    private const uint SpuriousVectorAfterReset = 0xFF;
    private const uint SpuriousWritable = SpuriousEnable | byte.MaxValue;
    private const uint FlatFormat = uint.MaxValue;
    private const uint FormatReadsAsOnes = 0x0FFF_FFFF;
    private const int XApicIdShift = 24;
    private const int ClusterShift = 16;
    private const int RegisterSpacingShift = 4;
    private const int WordsPerVectorSet = 8;

    private readonly ApicInterconnect interconnect;
    private readonly IMachineControl control;
    private readonly ApicTimer timer;
    private readonly VectorSet interruptRequests = new();
    private readonly VectorSet inService = new();
    private readonly VectorSet triggerModes = new();
    private readonly uint[] lvt = new uint[LvtCount];

    private volatile int ownerThread;
    private int signals;
    private volatile ApicMode mode;
    private volatile uint spurious = SpuriousVectorAfterReset;
    private volatile uint xapicLogicalId;
    private volatile uint destinationFormat = FlatFormat;
    private volatile byte processorPriority;
    private byte taskPriority;
    private ulong interruptCommand;
    private ulong baseMsr;
    private int pendingErrors;
    private ApicErrors errorStatus;

    /// <summary>Makes the local APIC of a vCPU, in x2APIC mode; vCPU 0 is the bootstrap processor.</summary>
    internal LocalApic(int index, ApicInterconnect interconnect, IClock clock, IMachineControl control, TimerQueue timers)
    {
        Index = index;
        this.interconnect = interconnect;
        this.control = control;
        timer = new ApicTimer(clock, timers, () => PostLocal(ApicRegister.LvtTimer));
        mode = ApicMode.X2Apic;
        ApicBase role = IsBootstrapProcessor ? ApicBase.BootstrapProcessor : ApicBase.None;
        baseMsr = DeviceLayout.LocalApicBase | (ulong)(ApicBase.Enable | ApicBase.X2Apic | role);
        ResetRegisters();
        if (IsBootstrapProcessor)
        {
            // Virtual wire mode, as firmware leaves it: the 8259A on LINT0 and the NMI button on LINT1.
            spurious = SpuriousWritable;
            LvtEntry(ApicRegister.LvtLint0) = (uint)LvtExtInt;
            LvtEntry(ApicRegister.LvtLint1) = (uint)LvtNmi;
        }
        else
        {
            signals = (int)Signals.WaitsForStartUp;
        }

        interconnect.Add(this);
    }

    private enum ApicMode
    {
        Disabled,
        XApic,
        X2Apic,
    }

    // One word, so that INIT, SIPI and the state between them change together.
    [Flags]
    private enum Signals
    {
        None = 0,
        Nmi = 1 << 0,
        Init = 1 << 1,
        StartUp = 1 << 2,
        WaitsForStartUp = 1 << 3,
        WakeUp = 1 << 4,
        StartUpVector = 0xFF << StartUpVectorShift,
    }

    private const int StartUpVectorShift = 8;

    /// <summary>Index of the vCPU and its APIC id.</summary>
    public int Index { get; }

    /// <summary>Whether this is the processor that boots. Any thread.</summary>
    public bool IsBootstrapProcessor => Index == 0;

    /// <summary>IA32_APIC_BASE. The vCPU's thread; written through <see cref="TryWriteBase"/>.</summary>
    public ulong Base => baseMsr;

    /// <summary>Whether the vCPU waits for a SIPI and runs nothing until then. Any thread.</summary>
    public bool IsWaitingForStartUp => (CurrentSignals & Signals.WaitsForStartUp) != 0;

    /// <summary>Whether there is anything the vCPU could take: an interrupt above its priority, NMI, INIT or SIPI. Any thread.</summary>
    public bool HasPending => HasNmi || HasInit || HasInterrupt;

    /// <summary>Whether an NMI is pending. One at most: an NMI that comes while one is pending is the same one. Any thread.</summary>
    public bool HasNmi => (CurrentSignals & Signals.Nmi) != 0;

    /// <summary>Whether an INIT or a SIPI is to be taken. Any thread.</summary>
    public bool HasInit => (CurrentSignals & (Signals.Init | Signals.StartUp)) != 0;

    /// <summary>Whether <see cref="TryAcknowledge"/> would return a vector. Any thread; exact on the vCPU's own.</summary>
    public bool HasInterrupt
    {
        get
        {
            int highest = interruptRequests.Highest();
            return highest != VectorSet.None && IsAbovePriority(highest) && mode != ApicMode.Disabled && !IsWaitingForStartUp;
        }
    }

    /// <summary>Whether LINT0 passes the 8259A's interrupts on, or the APIC is off and they go to the CPU directly. Any thread.</summary>
    public bool AcceptsExtInt
    {
        get
        {
            if (mode == ApicMode.Disabled)
            {
                return IsBootstrapProcessor;
            }

            Lvt entry = ReadLvt(ApicRegister.LvtLint0);
            return (entry & (Lvt.Masked | Lvt.DeliveryMode)) == LvtExtInt && !IsWaitingForStartUp;
        }
    }

    /// <summary>CR8: bits 7 to 4 of the task-priority register. The vCPU's thread.</summary>
    public byte Cr8
    {
        get => (byte)(taskPriority >> PriorityShift);
        set => SetTaskPriority((byte)(value << PriorityShift));
    }

    /// <summary>Whether fixed interrupts are accepted: APIC enabled, also by software, and no INIT came. Any thread.</summary>
    internal bool AcceptsFixed => mode != ApicMode.Disabled && (spurious & SpuriousEnable) != 0 && !IsWaitingForStartUp;

    /// <summary>
    /// Whether a write to the EOI register would do no more than take the vector in service off ISR: that vector came by an edge, so
    /// nobody else is to know, and no request waits that only the vector in service holds back. The vCPU's thread.
    /// </summary>
    internal bool HasSimpleEndOfInterrupt
    {
        get
        {
            int serving = inService.Highest();
            if (serving == VectorSet.None || mode != ApicMode.X2Apic || triggerModes.Has((byte)serving))
            {
                return false;
            }

            int waiting = interruptRequests.Highest();
            return waiting == VectorSet.None
                || waiting >> PriorityShift <= PriorityOver(inService.HighestBelow((byte)serving)) >> PriorityShift;
        }
    }

    /// <summary>PPR. Any thread, for arbitration.</summary>
    internal byte ProcessorPriority => processorPriority;

    private Signals CurrentSignals => (Signals)Volatile.Read(ref signals);

    private uint X2ApicLogicalId => ((uint)Index >> 4 << ClusterShift) | (1u << (Index & 0xF));

    /// <summary>Says that the calling thread runs the vCPU from now on: what it posts to itself needs no kick.</summary>
    public void BindToCurrentThread() => ownerThread = Environment.CurrentManagedThreadId;

    /// <summary>Takes the highest pending interrupt: moves it from IRR to ISR. The vCPU's thread, when the guest can take it.</summary>
    /// <param name="vector">The vector. It is never the spurious one: looking and taking are one step here.</param>
    /// <returns>Whether there was one above the processor's priority.</returns>
    public bool TryAcknowledge(out byte vector)
    {
        vector = 0;
        int highest = interruptRequests.Highest();
        if (highest == VectorSet.None || !IsAbovePriority(highest) || mode == ApicMode.Disabled || IsWaitingForStartUp)
        {
            return false;
        }

        vector = (byte)highest;
        interruptRequests.Clear(vector);
        inService.Set(vector);
        UpdateProcessorPriority();
        return true;
    }

    /// <summary>Takes a pending NMI. The vCPU's thread.</summary>
    public bool TakeNmi() => TakeSignal(Signals.Nmi);

    /// <summary>
    /// Ends the vCPU's halt, or the next one if it does not halt yet: what it waits for may have come just before it halts. It is no
    /// interrupt, but goes the way of one. Any thread.
    /// </summary>
    internal void PostWakeUp()
    {
        Change(clear: Signals.None, set: Signals.WakeUp);
        KickUnlessOwner();
    }

    /// <summary>Whether another vCPU has ended the halt. Any thread.</summary>
    internal bool HasWakeUp => (CurrentSignals & Signals.WakeUp) != 0;

    /// <summary>Takes a pending end of a halt. The vCPU's thread.</summary>
    internal bool TakeWakeUp() => TakeSignal(Signals.WakeUp);

    /// <summary>
    /// Takes a pending INIT and resets the APIC's registers (its mode stays, SDM 11.12.5.1). The vCPU resets itself, and then waits
    /// for a SIPI. The vCPU's thread.
    /// </summary>
    public bool TakeInit()
    {
        if (!TakeSignal(Signals.Init))
        {
            return false;
        }

        ResetRegisters();
        return true;
    }

    /// <summary>Takes a SIPI; not before the INIT that came first was taken. The vCPU's thread.</summary>
    /// <param name="vector">The guest-physical page (4 KiB) where the vCPU starts in real mode.</param>
    public bool TryTakeStartUp(out byte vector)
    {
        while (true)
        {
            Signals now = CurrentSignals;
            vector = (byte)((int)now >> StartUpVectorShift);
            if ((now & (Signals.StartUp | Signals.Init)) != Signals.StartUp)
            {
                return false;
            }

            // An INIT that comes at this moment must find its processor waiting.
            if (TryChange(now, now & ~(Signals.StartUp | Signals.WaitsForStartUp | Signals.StartUpVector)))
            {
                return true;
            }
        }
    }

    /// <summary>Begins in xAPIC mode, in which a processor is after its reset. Before the vCPU runs.</summary>
    internal void BeginInXApicMode()
    {
        mode = ApicMode.XApic;
        baseMsr &= ~(ulong)ApicBase.X2Apic;
    }

    /// <summary>Writes IA32_APIC_BASE. The vCPU's thread.</summary>
    /// <returns>False where the manual says #GP: reserved bits, or a forbidden change of mode (SDM figure 11-27).</returns>
    public bool TryWriteBase(ulong value)
    {
        const ApicBase Known = ApicBase.BootstrapProcessor | ApicBase.X2Apic | ApicBase.Enable | ApicBase.Address;
        ApicBase flags = (ApicBase)value;
        bool enable = (flags & ApicBase.Enable) != 0;
        bool x2Apic = (flags & ApicBase.X2Apic) != 0;
        ApicMode next = !enable ? ApicMode.Disabled : x2Apic ? ApicMode.X2Apic : ApicMode.XApic;
        bool forbidden = (flags & ~Known) != 0 || (x2Apic && !enable) ||
            (mode == ApicMode.X2Apic && next == ApicMode.XApic) ||
            (mode == ApicMode.Disabled && next == ApicMode.X2Apic);
        if (forbidden)
        {
            return false;
        }

        baseMsr = value;
        if (next == ApicMode.Disabled && mode != ApicMode.Disabled)
        {
            ResetRegisters();
        }

        mode = next;
        return true;
    }

    /// <summary>Whether an MSR belongs to the local APIC: the x2APIC range and IA32_TSC_DEADLINE.</summary>
    public static bool OwnsMsr(uint msr) => msr is (>= FirstMsr and <= LastMsr) or TscDeadlineMsr;

    /// <summary>RDMSR. The vCPU's thread.</summary>
    /// <param name="msr">An MSR that <see cref="OwnsMsr"/>.</param>
    /// <param name="value">The value.</param>
    /// <returns>False where the manual says #GP.</returns>
    public bool TryReadMsr(uint msr, out ulong value)
    {
        if (msr == TscDeadlineMsr)
        {
            value = timer.TscDeadline;
            return true;
        }

        ApicRegister register = (ApicRegister)(msr - FirstMsr);
        value = 0;
        if (mode != ApicMode.X2Apic)
        {
            return false;
        }

        if (register == ApicRegister.InterruptCommand)
        {
            value = interruptCommand;
            return true;
        }

        bool xapicOnly = register is ApicRegister.InterruptCommandHigh or ApicRegister.DestinationFormat
            or ApicRegister.ArbitrationPriority or ApicRegister.RemoteRead;
        if (xapicOnly || !TryReadRegister(register, out uint word))
        {
            return false;
        }

        value = word;
        return true;
    }

    /// <summary>WRMSR. The vCPU's thread.</summary>
    /// <param name="msr">An MSR that <see cref="OwnsMsr"/>.</param>
    /// <param name="value">The value.</param>
    /// <returns>False where the manual says #GP.</returns>
    public bool TryWriteMsr(uint msr, ulong value)
    {
        if (msr == TscDeadlineMsr)
        {
            timer.SetTscDeadline(value);
            return true;
        }

        ApicRegister register = (ApicRegister)(msr - FirstMsr);
        if (mode != ApicMode.X2Apic)
        {
            return false;
        }

        if (register == ApicRegister.InterruptCommand)
        {
            interruptCommand = value & ((ulong)Icr.WritableLow | ((ulong)uint.MaxValue << 32));
            SendInterprocessorInterrupt((uint)(value >> 32));
            return true;
        }

        if (value > X2ApicLimit(register))
        {
            return false;
        }

        switch (register)
        {
            case ApicRegister.Id:
            case ApicRegister.LogicalDestination:
            case ApicRegister.DestinationFormat:
            case ApicRegister.InterruptCommandHigh:
                return false;
            case ApicRegister.SelfIpi:
                Accept(new InterruptMessage((uint)Index, false, DeliveryMode.Fixed, (byte)value, false));
                return true;
            default:
                return TryWriteRegister(register, (uint)value);
        }
    }

    /// <summary>Whether the xAPIC window covers an address. The vCPU's thread.</summary>
    public bool OwnsAddress(ulong address) =>
        mode == ApicMode.XApic && address - (baseMsr & (ulong)ApicBase.Address) < DeviceLayout.LocalApicSize;

    /// <summary>Reads the xAPIC window. The vCPU's thread. Registers are 32 bits at multiples of 16 bytes.</summary>
    public ulong Read(ulong offset, int size)
    {
        ApicRegister register = (ApicRegister)(offset >> RegisterSpacingShift);
        if (!TryReadRegister(register, out uint value) || register == ApicRegister.SelfIpi)
        {
            Report(ApicErrors.IllegalRegisterAddress);
            return 0;
        }

        int shift = (int)(offset & 0xF) * 8;
        return shift >= 32 ? 0 : value >> shift;
    }

    /// <summary>Writes the xAPIC window. The vCPU's thread. Only aligned 32-bit writes mean anything.</summary>
    public void Write(ulong offset, int size, ulong value)
    {
        ApicRegister register = (ApicRegister)(offset >> RegisterSpacingShift);
        if ((offset & 0xF) == 0 && !TryWriteRegister(register, (uint)value))
        {
            Report(ApicErrors.IllegalRegisterAddress);
        }
    }

    /// <summary>Whether a message's destination names this APIC. Any thread.</summary>
    internal bool Matches(uint destination, bool logical)
    {
        if (destination == InterruptMessage.Broadcast)
        {
            return true;
        }

        if (!logical)
        {
            return destination == (uint)Index;
        }

        if (mode == ApicMode.X2Apic)
        {
            uint id = X2ApicLogicalId;
            return destination >> ClusterShift == id >> ClusterShift && (destination & id & ushort.MaxValue) != 0;
        }

        uint xapicId = xapicLogicalId >> XApicIdShift;
        bool flat = destinationFormat == FlatFormat;
        return flat
            ? (destination & xapicId) != 0
            : destination >> PriorityShift == xapicId >> PriorityShift && (destination & xapicId & 0xF) != 0;
    }

    /// <summary>Takes a message. Any thread.</summary>
    /// <returns>Whether it was accepted.</returns>
    internal bool Accept(in InterruptMessage message)
    {
        if (mode == ApicMode.Disabled)
        {
            return false;
        }

        switch (message.Mode)
        {
            case DeliveryMode.Fixed:
            case DeliveryMode.LowestPriority:
                return PostFixed(message.Vector, message.Level);
            case DeliveryMode.Nmi:
                if (!PostNmi())
                {
                    return true;
                }

                break;
            case DeliveryMode.Init when IsBootstrapProcessor:
                // It would start at the reset vector, where there is no firmware.
                control.Reset("INIT of the bootstrap processor");
                return true;
            case DeliveryMode.Init:
                Change(
                    clear: Signals.Nmi | Signals.WakeUp | Signals.StartUp | Signals.StartUpVector,
                    set: Signals.Init | Signals.WaitsForStartUp);
                break;
            case DeliveryMode.StartUp:
                if (!PostStartUp(message.Vector))
                {
                    return true;
                }

                break;
            case DeliveryMode.Smi:
            case DeliveryMode.ExtInt:
            default:
                return false;
        }

        KickUnlessOwner();
        return true;
    }

    private bool PostFixed(byte vector, bool level)
    {
        if (!AcceptsFixed)
        {
            return false;
        }

        if (vector < FirstLegalVector)
        {
            Report(ApicErrors.ReceiveIllegalVector);
            return false;
        }

        // TMR before IRR: who sees the request knows its trigger mode.
        if (level)
        {
            triggerModes.Set(vector);
        }
        else if (triggerModes.Has(vector))
        {
            triggerModes.Clear(vector);
        }

        // A bit that was set already had its kick, and is still to be looked at.
        if (interruptRequests.Set(vector))
        {
            KickUnlessOwner();
        }

        return true;
    }

    // A processor that waits for its SIPI has no handler yet. One that is pending already had its kick.
    private bool PostNmi()
    {
        while (true)
        {
            Signals now = CurrentSignals;
            if ((now & (Signals.WaitsForStartUp | Signals.Nmi)) != Signals.None)
            {
                return false;
            }

            if (TryChange(now, now | Signals.Nmi))
            {
                return true;
            }
        }
    }

    // The second SIPI of the usual pair, and any SIPI to a running processor, mean nothing.
    private bool PostStartUp(byte vector)
    {
        while (true)
        {
            Signals now = CurrentSignals;
            if ((now & (Signals.WaitsForStartUp | Signals.StartUp)) != Signals.WaitsForStartUp)
            {
                return false;
            }

            Signals next = (now & ~Signals.StartUpVector) | Signals.StartUp | (Signals)(vector << StartUpVectorShift);
            if (TryChange(now, next))
            {
                return true;
            }
        }
    }

    private bool TakeSignal(Signals signal)
    {
        if ((CurrentSignals & signal) == 0)
        {
            return false;
        }

        Change(clear: signal, set: Signals.None);
        return true;
    }

    private void Change(Signals clear, Signals set)
    {
        Signals now;
        do
        {
            now = CurrentSignals;
        }
        while (!TryChange(now, (now & ~clear) | set));
    }

    private bool TryChange(Signals from, Signals to) => Interlocked.CompareExchange(ref signals, (int)to, (int)from) == (int)from;

    /// <summary>Makes the vCPU look again, unless the caller is the vCPU and will anyway. Any thread.</summary>
    internal void KickUnlessOwner()
    {
        if (ownerThread != Environment.CurrentManagedThreadId)
        {
            control.Kick(Index);
        }
    }

    private bool IsAbovePriority(int vector) => vector >> PriorityShift > processorPriority >> PriorityShift;

    private void SetTaskPriority(byte value)
    {
        taskPriority = value;
        UpdateProcessorPriority();
    }

    private void UpdateProcessorPriority() => processorPriority = PriorityOver(inService.Highest());

    /// <summary>PPR while a vector (or none) is the highest in service.</summary>
    private byte PriorityOver(int serving)
    {
        uint servingClass = serving == VectorSet.None ? 0 : (uint)serving & PriorityClass;
        return (taskPriority & PriorityClass) >= servingClass ? taskPriority : (byte)servingClass;
    }

    /// <summary>
    /// Ends the interrupt in service as the guest already has, when <see cref="HasSimpleEndOfInterrupt"/> said so. TMR is not asked
    /// again: by now the vector may have been requested by a level, which has an end of its own. The vCPU's thread.
    /// </summary>
    internal void EndSimply()
    {
        int serving = inService.Highest();
        if (serving != VectorSet.None)
        {
            inService.Clear((byte)serving);
            UpdateProcessorPriority();
        }
    }

    private void EndOfInterrupt()
    {
        int serving = inService.Highest();
        if (serving == VectorSet.None)
        {
            return;
        }

        byte vector = (byte)serving;
        inService.Clear(vector);
        UpdateProcessorPriority();
        if (triggerModes.Has(vector))
        {
            interconnect.LevelEndOfInterrupt?.Invoke(vector);
        }
    }

    private void PostLocal(ApicRegister entryRegister)
    {
        Lvt entry = ReadLvt(entryRegister);
        if ((entry & Lvt.Masked) == 0)
        {
            PostFixed((byte)(entry & Lvt.Vector), level: false);
        }
    }

    // Any thread. An error in delivering the error interrupt itself is only recorded.
    private void Report(ApicErrors error)
    {
        int before = Interlocked.Or(ref pendingErrors, (int)error);
        Lvt entry = ReadLvt(ApicRegister.LvtError);
        if ((before & (int)error) == 0 && (byte)(entry & Lvt.Vector) >= FirstLegalVector)
        {
            PostLocal(ApicRegister.LvtError);
        }
    }

    private void SendInterprocessorInterrupt(uint destination)
    {
        const int ModeShift = 8;
        const int ModeMask = 7;
        const int ShorthandShift = 18;
        const int ShorthandMask = 3;
        ulong command = interruptCommand;
        Icr flags = (Icr)command;
        byte vector = (byte)(flags & Icr.Vector);
        DeliveryMode delivery = (DeliveryMode)((command >> ModeShift) & ModeMask);
        if (delivery == DeliveryMode.Init && (flags & (Icr.LevelTriggered | Icr.LevelAssert)) == Icr.LevelTriggered)
        {
            return; // INIT level de-assert: only synchronizes arbitration ids of processors long gone.
        }

        if (delivery is DeliveryMode.Fixed or DeliveryMode.LowestPriority && vector < FirstLegalVector)
        {
            Report(ApicErrors.SendIllegalVector);
            return;
        }

        // An IPI is an edge whatever its trigger bit says: there is no line to lower at its EOI.
        InterruptMessage message = new(destination, (flags & Icr.LogicalDestination) != 0, delivery, vector, Level: false);
        interconnect.Deliver(message, (DestinationShorthand)((command >> ShorthandShift) & ShorthandMask), this);
    }

    // What is larger has reserved bits set.
    private static ulong X2ApicLimit(ApicRegister register) => register switch
    {
        ApicRegister.EndOfInterrupt or ApicRegister.ErrorStatus => 0,
        ApicRegister.TaskPriority or ApicRegister.SelfIpi => byte.MaxValue,
        _ => uint.MaxValue,
    };

    private bool TryReadRegister(ApicRegister register, out uint value)
    {
        bool x2Apic = mode == ApicMode.X2Apic;
        switch (register)
        {
            case ApicRegister.Id:
                value = x2Apic ? (uint)Index : (uint)Index << XApicIdShift;
                return true;
            case ApicRegister.Version:
                value = VersionValue;
                return true;
            case ApicRegister.TaskPriority:
                value = taskPriority;
                return true;
            case ApicRegister.ProcessorPriority:
            case ApicRegister.ArbitrationPriority:
                value = processorPriority;
                return true;
            case ApicRegister.LogicalDestination:
                value = x2Apic ? X2ApicLogicalId : xapicLogicalId;
                return true;
            case ApicRegister.DestinationFormat:
                value = destinationFormat;
                return true;
            case ApicRegister.SpuriousVector:
                value = spurious;
                return true;
            case >= ApicRegister.InService and < ApicRegister.InService + WordsPerVectorSet:
                value = inService.Register(register - ApicRegister.InService);
                return true;
            case >= ApicRegister.TriggerMode and < ApicRegister.TriggerMode + WordsPerVectorSet:
                value = triggerModes.Register(register - ApicRegister.TriggerMode);
                return true;
            case >= ApicRegister.InterruptRequest and < ApicRegister.InterruptRequest + WordsPerVectorSet:
                value = interruptRequests.Register(register - ApicRegister.InterruptRequest);
                return true;
            case ApicRegister.ErrorStatus:
                value = (uint)errorStatus;
                return true;
            case ApicRegister.InterruptCommand:
                value = (uint)interruptCommand;
                return true;
            case ApicRegister.InterruptCommandHigh:
                value = (uint)(interruptCommand >> 32);
                return true;
            case >= ApicRegister.LvtTimer and <= ApicRegister.LvtError:
                value = (uint)ReadLvt(register);
                return true;
            case ApicRegister.InitialCount:
                value = timer.InitialCount;
                return true;
            case ApicRegister.CurrentCount:
                value = timer.CurrentCount;
                return true;
            case ApicRegister.DivideConfiguration:
                value = timer.DivideConfiguration;
                return true;
            case ApicRegister.RemoteRead:
                value = 0;
                return true;
            default: // Write-only ones, too.
                value = 0;
                return false;
        }
    }

    private bool TryWriteRegister(ApicRegister register, uint value)
    {
        switch (register)
        {
            case ApicRegister.TaskPriority:
                SetTaskPriority((byte)value);
                return true;
            case ApicRegister.EndOfInterrupt:
                EndOfInterrupt();
                return true;
            case ApicRegister.Id:
                return true; // The id is wired.
            case ApicRegister.LogicalDestination:
                xapicLogicalId = value & ((uint)byte.MaxValue << XApicIdShift);
                return true;
            case ApicRegister.DestinationFormat:
                destinationFormat = value | FormatReadsAsOnes;
                return true;
            case ApicRegister.SpuriousVector:
                SetSpuriousVector(value & SpuriousWritable);
                return true;
            case ApicRegister.ErrorStatus:
                errorStatus = (ApicErrors)Interlocked.Exchange(ref pendingErrors, 0);
                return true;
            case ApicRegister.InterruptCommand:
                interruptCommand = (interruptCommand & (ulong)Icr.XApicDestination) | (value & (ulong)Icr.WritableLow);
                SendInterprocessorInterrupt(InterruptMessage.Widen((byte)(interruptCommand >> 56)));
                return true;
            case ApicRegister.InterruptCommandHigh:
                interruptCommand = (uint)interruptCommand | (((ulong)value << 32) & (ulong)Icr.XApicDestination);
                return true;
            case >= ApicRegister.LvtTimer and <= ApicRegister.LvtError:
                WriteLvt(register, (Lvt)value);
                return true;
            case ApicRegister.InitialCount:
                timer.SetInitialCount(value);
                return true;
            case ApicRegister.DivideConfiguration:
                timer.DivideConfiguration = value;
                return true;
            default:
                return false;
        }
    }

    private void SetSpuriousVector(uint value)
    {
        spurious = value;
        if ((value & SpuriousEnable) == 0)
        {
            for (ApicRegister entry = ApicRegister.LvtTimer; entry <= ApicRegister.LvtError; entry++)
            {
                WriteLvt(entry, ReadLvt(entry) | Lvt.Masked);
            }
        }
    }

    private ref uint LvtEntry(ApicRegister register) => ref lvt[register - ApicRegister.LvtTimer];

    private Lvt ReadLvt(ApicRegister register) => (Lvt)Volatile.Read(ref LvtEntry(register));

    private void WriteLvt(ApicRegister register, Lvt value)
    {
        const Lvt Common = Lvt.Vector | Lvt.Masked;
        Lvt writable = register switch
        {
            ApicRegister.LvtTimer => Common | Lvt.TimerMode,
            ApicRegister.LvtLint0 or ApicRegister.LvtLint1 =>
                Common | Lvt.DeliveryMode | Lvt.Polarity | Lvt.LevelTriggered,
            ApicRegister.LvtError => Common,
            _ => Common | Lvt.DeliveryMode,
        };
        Lvt entry = value & writable;
        if ((spurious & SpuriousEnable) == 0)
        {
            entry |= Lvt.Masked; // A software-disabled APIC keeps its local interrupts masked.
        }

        Volatile.Write(ref LvtEntry(register), (uint)entry);
        if (register == ApicRegister.LvtTimer)
        {
            timer.SetMode(entry & Lvt.TimerMode);
        }
    }

    private void ResetRegisters()
    {
        // First of all, so that no more requests are accepted when those that were are forgotten.
        spurious = SpuriousVectorAfterReset;
        interruptRequests.Clear();
        inService.Clear();
        triggerModes.Clear();
        taskPriority = 0;
        UpdateProcessorPriority();
        xapicLogicalId = 0;
        destinationFormat = FlatFormat;
        interruptCommand = 0;
        errorStatus = ApicErrors.None;
        Interlocked.Exchange(ref pendingErrors, 0);
        timer.Reset();
        for (ApicRegister entry = ApicRegister.LvtTimer; entry <= ApicRegister.LvtError; entry++)
        {
            Volatile.Write(ref LvtEntry(entry), (uint)Lvt.Masked);
        }
    }
}
