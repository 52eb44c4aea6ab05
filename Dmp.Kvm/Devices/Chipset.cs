using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Devices;

/// <summary>
/// All devices of a machine, wired together. Built before the first vCPU runs; the shape never changes after that. Members that take
/// a vCPU index belong to that vCPU's thread unless they say otherwise; none of them allocates.
/// </summary>
public sealed class Chipset
{
    private readonly TimerQueue[] timers;
    private readonly DeviceTimer[] secondLooks;
    private readonly LocalApic[] localApics;
    private readonly ApicInterconnect interconnect = new();
    private readonly IMachineControl control;
    private readonly SerialConsole console;

    /// <summary>Builds the devices.</summary>
    /// <param name="vcpus">Number of vCPUs.</param>
    /// <param name="clock">The time.</param>
    /// <param name="control">The machine; its Kick and KickAt are called under device locks and must not call back.</param>
    /// <param name="console">The host's end of the serial line.</param>
    /// <param name="ramBytes">Guest RAM in bytes.</param>
    /// <param name="debugExitPort">First of the debug-exit device's four ports, or null for no such device.</param>
    public Chipset(
        int vcpus, IClock clock, IMachineControl control, SerialConsole console, ulong ramBytes, ushort? debugExitPort)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(vcpus);
        ArgumentNullException.ThrowIfNull(clock);
        ArgumentNullException.ThrowIfNull(control);
        ArgumentNullException.ThrowIfNull(console);
        this.control = control;
        this.console = console;
        timers = new TimerQueue[vcpus];
        secondLooks = new DeviceTimer[vcpus];
        localApics = new LocalApic[vcpus];
        for (int vcpu = 0; vcpu < vcpus; vcpu++)
        {
            timers[vcpu] = new TimerQueue(vcpu, control);
            secondLooks[vcpu] = timers[vcpu].Add(_ => { }); // The kick is all.
            localApics[vcpu] = new LocalApic(vcpu, interconnect, clock, control, timers[vcpu]);
        }

        IoApic = new IoApic(interconnect);
        Mmio.Register(DeviceLayout.IoApicBase, DeviceLayout.IoApicSize, IoApic);
        Pic = new Pic8259(raised: KickForExtInt);
        Pit8254 pit = new(clock, timers[0], level => SetIrq(DeviceLayout.TimerIrq, level));
        Uart = new Uart16550(DeviceLayout.Serial, console, console, level => SetIrq(DeviceLayout.SerialIrq, level));
        console.InputArrived = Uart.ReceiveInput;
        RegisterPorts(clock, ramBytes, pit, debugExitPort);
    }

    /// <summary>The I/O port space. Any thread.</summary>
    public PortBus Ports { get; } = new();

    /// <summary>The shared memory-mapped devices; <see cref="ReadMmio"/> adds the vCPU's own local APIC.</summary>
    public MmioBus Mmio { get; } = new();

    /// <summary>The local APICs, by vCPU.</summary>
    public IReadOnlyList<LocalApic> LocalApics => localApics;

    /// <summary>The pair of 8259A.</summary>
    public Pic8259 Pic { get; }

    /// <summary>The I/O APIC.</summary>
    public IoApic IoApic { get; }

    /// <summary>The serial port of the console.</summary>
    public Uart16550 Uart { get; }

    /// <summary>The local APICs begin in xAPIC mode. Before the first vCPU runs.</summary>
    internal void BeginInXApicMode()
    {
        foreach (LocalApic apic in localApics)
        {
            apic.BeginInXApicMode();
        }
    }

    /// <summary>Offers implants what needs no exit. Before the first vCPU runs.</summary>
    internal void Offer(DevicePage page)
    {
        Uart.Offer(page);
        console.OutputWanted = Uart.PutOutTransmitted;
    }

    /// <summary>Drives an ISA interrupt line, which both interrupt controllers see. Any thread.</summary>
    /// <param name="irq">0 to 15.</param>
    /// <param name="level">Whether the device asserts it.</param>
    public void SetIrq(int irq, bool level)
    {
        Pic.SetIrq(irq, level);
        IoApic.SetPin(irq == DeviceLayout.TimerIrq ? DeviceLayout.TimerPin : irq, level);
    }

    /// <summary>
    /// The next time at which the vCPU has to call <see cref="RunDue"/>, on <see cref="IClock.Nanoseconds"/>, or
    /// <see cref="TimerQueue.Never"/>. It is kicked then. Any thread.
    /// </summary>
    public long NextDeadline(int vcpu) => timers[vcpu].NextDeadline;

    /// <summary>Runs the timers of the vCPU that are due; after each kick, before looking for interrupts.</summary>
    /// <param name="vcpu">The calling vCPU.</param>
    /// <param name="now">Time on <see cref="IClock.Nanoseconds"/>.</param>
    public void RunDue(int vcpu, long now) => timers[vcpu].RunDue(now);

    /// <summary>
    /// Says that the vCPU begins to run and can be kicked: its next deadline is arranged anew. The vCPU's thread, before it looks for
    /// interrupts the first time.
    /// </summary>
    public void BeginRun(int vcpu)
    {
        localApics[vcpu].BindToCurrentThread();
        timers[vcpu].Rearrange();
    }

    /// <summary>
    /// Has the vCPU kicked at a time of its own choice, to look again at what it cannot take now. It is one of the vCPU's deadlines and
    /// takes no other's place. The vCPU's thread.
    /// </summary>
    /// <param name="vcpu">The calling vCPU.</param>
    /// <param name="nanoseconds">Time on <see cref="IClock.Nanoseconds"/>.</param>
    public void LookAgainAt(int vcpu, long nanoseconds) => secondLooks[vcpu].Set(nanoseconds);

    /// <summary>
    /// Whether there is anything for the vCPU: a maskable interrupt, NMI, INIT or SIPI. Any thread; after a kick, exact.
    /// </summary>
    public bool HasPending(int vcpu) => localApics[vcpu].HasPending || InterruptPending(vcpu);

    /// <summary>
    /// Whether a halt of the vCPU is over: an INIT, an NMI or an interrupt can be taken, or another vCPU has ended it. The vCPU's thread.
    /// </summary>
    /// <param name="vcpu">The calling vCPU.</param>
    /// <param name="interruptFlag">Its IF.</param>
    /// <param name="nmiBlocked">Whether it holds NMIs back.</param>
    public bool TryEndHalt(int vcpu, bool interruptFlag, bool nmiBlocked)
    {
        LocalApic apic = localApics[vcpu];
        return apic.TakeWakeUp() || apic.HasInit || (apic.HasNmi && !nmiBlocked) || (interruptFlag && InterruptPending(vcpu));
    }

    /// <summary>Whether a maskable interrupt waits, so that <see cref="TryAcknowledge"/> is worth a call once IF is 1. Any thread.</summary>
    public bool InterruptPending(int vcpu)
    {
        LocalApic apic = localApics[vcpu];
        return apic.HasInterrupt || (Pic.Output && apic.AcceptsExtInt);
    }

    /// <summary>Takes the interrupt to deliver next: the 8259A's through LINT0 before the local APIC's own, as KVM does.</summary>
    /// <returns>Whether there was one.</returns>
    public bool TryAcknowledge(int vcpu, out byte vector)
    {
        LocalApic apic = localApics[vcpu];
        if (Pic.Output && apic.AcceptsExtInt)
        {
            vector = Pic.Acknowledge();
            return true;
        }

        return apic.TryAcknowledge(out vector);
    }

    /// <summary>Sends a message to local APICs that comes from no register. Any thread.</summary>
    /// <returns>Whether one accepted it.</returns>
    internal bool Send(in InterruptMessage message) => interconnect.Deliver(message);

    /// <summary>Reads memory-mapped registers as the vCPU sees them.</summary>
    /// <param name="vcpu">The calling vCPU.</param>
    /// <param name="address">Guest physical address.</param>
    /// <param name="size">1, 2, 4 or 8 bytes.</param>
    /// <returns>The value, zero-extended; all ones of the size where nobody answers.</returns>
    public ulong ReadMmio(int vcpu, ulong address, int size)
    {
        LocalApic apic = localApics[vcpu];
        return apic.OwnsAddress(address)
            ? apic.Read(address & (DeviceLayout.LocalApicSize - 1), size)
            : Mmio.Read(address, size);
    }

    /// <summary>Writes memory-mapped registers as the vCPU sees them.</summary>
    /// <param name="vcpu">The calling vCPU.</param>
    /// <param name="address">Guest physical address.</param>
    /// <param name="size">1, 2, 4 or 8 bytes.</param>
    /// <param name="value">The value, zero-extended.</param>
    public void WriteMmio(int vcpu, ulong address, int size, ulong value)
    {
        LocalApic apic = localApics[vcpu];
        if (apic.OwnsAddress(address))
        {
            apic.Write(address & (DeviceLayout.LocalApicSize - 1), size, value);
        }
        else
        {
            Mmio.Write(address, size, value);
        }
    }

    private void KickForExtInt()
    {
        foreach (LocalApic apic in localApics)
        {
            if (apic.AcceptsExtInt)
            {
                apic.KickUnlessOwner();
            }
        }
    }

    private void RegisterPorts(IClock clock, ulong ramBytes, Pit8254 pit, ushort? debugExitPort)
    {
        const int Pair = 1;
        Ports.Register(DeviceLayout.MasterPic, DeviceLayout.MasterPic + Pair, Pic);
        Ports.Register(DeviceLayout.SlavePic, DeviceLayout.SlavePic + Pair, Pic);
        Ports.Register(DeviceLayout.EdgeLevelControl, DeviceLayout.EdgeLevelControl + Pair, Pic);
        Ports.Register(DeviceLayout.Pit, DeviceLayout.Pit + 3, pit);
        Ports.Register(DeviceLayout.SystemControlB, DeviceLayout.SystemControlB, pit);
        Ports.Register(DeviceLayout.Rtc, DeviceLayout.Rtc + Pair, new CmosRtc(clock, ramBytes));
        I8042 keyboard = new(control);
        Ports.Register(DeviceLayout.KeyboardData, DeviceLayout.KeyboardData, keyboard);
        Ports.Register(DeviceLayout.KeyboardCommand, DeviceLayout.KeyboardCommand, keyboard);
        PostPort delay = new();
        Ports.Register(DeviceLayout.PostCode, DeviceLayout.PostCode, delay);
        Ports.Register(DeviceLayout.AlternateDelay, DeviceLayout.AlternateDelay, delay);
        Ports.Register(DeviceLayout.Serial, DeviceLayout.Serial + Uart16550.PortCount - 1, Uart);
        PciConfigPorts pci = new(new ResetControl(control));
        Ports.Register(DeviceLayout.PciConfig, DeviceLayout.PciConfig + PciConfigPorts.PortCount - 1, pci, sizeof(uint));
        AcpiPm power = new(clock, control);
        Ports.Register(DeviceLayout.Pm1aEvent, DeviceLayout.Pm1aEvent + AcpiPm.BlockPorts - 1, power, sizeof(ushort));
        Ports.Register(DeviceLayout.PmTimer, DeviceLayout.PmTimer + AcpiPm.TimerPorts - 1, power, sizeof(uint));
        if (debugExitPort is { } port)
        {
            ushort last = (ushort)Math.Min(port + DebugExit.PortCount - 1, ushort.MaxValue);
            Ports.Register(port, last, new DebugExit(control), sizeof(uint));
        }
    }
}
