using System.Globalization;
using Dmp.Kvm.Boot;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Emulation;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;
using Dmp.Kvm.Patching;
using Dmp.Kvm.Probe;
using Dmp.Kvm.Symbols;

namespace Dmp.Kvm.Machine;

/// <summary>A machine on KVM, loaded with a kernel and ready to run.</summary>
public sealed class VirtualMachine : IMachine, IMachineFacts
{
    private const int UsualCpus = 2;
    private const double ShortestKickRetry = 50_000;

    private readonly List<IDisposable> owned = [];
    private readonly SharedMachine shared;
    private readonly Vcpu[] vcpus;
    private readonly SerialConsole console;
    private readonly BootState boot;
    private readonly Substrate substrate;
    private readonly Lazy<KernelSymbols?> symbols;
    private readonly PatchEngine? patches;

    private VirtualMachine(MachineConfiguration configuration)
    {
        try
        {
            using KernelImage kernel = KernelImage.Open(configuration.KernelPath);
            KvmSystem kvm = Own(KvmSystem.Open());
            KvmVm vm = Own(kvm.CreateVm());
            Lazy<bool> startsUp = new(() => StartUpProbe.Works(kvm));
            int cpus = configuration.Cpus ?? (Environment.ProcessorCount >= UsualCpus && startsUp.Value ? UsualCpus : 1);
            GuestMemory memory = Own(GuestMemory.Create(configuration.MemoryBytes));
            boot = KernelLoader.Load(memory, kernel, new BootRequest
            {
                CommandLine = configuration.CommandLine,
                InitrdPath = configuration.InitrdPath,
                Cpus = cpus,
                Use32BitEntry = configuration.Use32BitEntry,
            });
            MappedMemory monitor = Own(MappedMemory.Create("dmp-monitor", MachineLayout.MonitorSize(cpus)));
            MonitorImage.Write(monitor, cpus);
            MapMemory(vm, memory, monitor);
            console = new SerialConsole();
            substrate = Substrate.Measure(kvm);
            symbols = new Lazy<KernelSymbols?>(() => KernelSymbols.Find(memory, boot));
            CodePages code = new(memory)
            {
                OriginalText = (boot.KernelStart.Frame, new GuestPhysicalAddress(boot.KernelStart.Value + boot.KernelLength).Frame),
            };
            patches = configuration.Patching
                ? new PatchEngine(
                    code,
                    new GuestText(memory, code, boot, () => symbols.Value),
                    new TemplateSet(new TemplateHost(substrate.UserFsGsBase), configuration.DisabledTemplates),
                    monitor,
                    boot.KernelVirtualBase.Value)
                : null;
            bool hasStartUp = cpus > 1 || boot.Mode == BootMode.ProtectedMode;
            if (hasStartUp && !startsUp.Value)
            {
                throw new HostUnsupportedException(
                    "This KVM does not run code on its way to 64-bit mode: a guest has one CPU here (--cpus 1), and a kernel that is entered "
                    + "in 64-bit mode. See ./dmp probe.");
            }

            shared = Share(configuration, cpus, kvm, memory, monitor, code) with
            {
                KvmAnswersCpuid = hasStartUp || !substrate.UserCpuidIsHosts,
                WatchesMsrs = hasStartUp && vm.TryWatchMsrs(),
            };
            vcpus = new Vcpu[cpus];
            for (int index = 0; index < vcpus.Length; index++)
            {
                vcpus[index] = Own(new Vcpu(shared, vm, index));
            }

            shared.Control.Attach(vcpus);
            if (boot.BeginsInXApicMode)
            {
                shared.Chipset.BeginInXApicMode();
            }

            if (patches is not null)
            {
                shared.Chipset.Offer(new DevicePage(monitor));
            }

            EnterKernel(vcpus[0]);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public IReadOnlyList<IVcpu> Vcpus => vcpus;

    /// <inheritdoc/>
    public ISerialConsole Console => console;

    /// <inheritdoc/>
    public IPatchEngine? Patching => patches;

    /// <summary>Identity of the kernel: build id, or hash of the image.</summary>
    public string? KernelId => boot.BuildId;

    /// <summary>The vCPUs with what specs need of them.</summary>
    internal IReadOnlyList<Vcpu> InternalVcpus => vcpus;

    /// <inheritdoc/>
    public HostFacts Host => new()
    {
        Cpl0 = substrate.MonitorEmulated ? "emulated" : "native",
        HostPageTableWrites = substrate.HostRemovalsSeen ? "seen" : "unseen",
        ExitMicroseconds = substrate.ExitMicroseconds,
        Strategies = SubstrateProbe.Strategies(substrate),
    };

    /// <inheritdoc/>
    public IReadOnlyDictionary<ushort, long> UnownedPorts
    {
        get
        {
            List<UnownedPort> ports = [];
            shared.Chipset.Ports.SnapshotUnowned(ports);
            return ports.ToDictionary(port => port.Port, port => (long)port.Reads + port.Writes);
        }
    }

    /// <summary>What the vCPUs share, for specs.</summary>
    internal SharedMachine Shared => shared;

    /// <summary>Makes a machine and loads its kernel.</summary>
    /// <exception cref="UnusableInputException">The kernel, the RAM disk or the configuration cannot be used.</exception>
    /// <exception cref="HostUnsupportedException">This host cannot run a machine.</exception>
    public static VirtualMachine Create(MachineConfiguration configuration)
    {
        ArgumentNullException.ThrowIfNull(configuration);
        Check(configuration);
        return new VirtualMachine(configuration);
    }

    /// <summary>Names a guest address as symbol+offset; null when it is in none. Any thread.</summary>
    public string? Symbol(ulong address)
    {
        lock (symbols)
        {
            return symbols.Value?.Describe(address);
        }
    }

    /// <summary>Disassembles the kernel instruction at an address; null when it cannot be read. Only while no vCPU runs.</summary>
    public string? Instruction(ulong address)
    {
        CpuState current = vcpus[0].State;
        CpuState kernel = new() { Cr0 = current.Cr0, Cr3 = current.Cr3, Cr4 = current.Cr4, Efer = current.Efer };
        InstructionFetcher fetcher = new(new GuestAccess(shared.Memory, shared.Code, kernel, _ => { }));
        return fetcher.TryFetch(address, compatibility: false, out Iced.Intel.Instruction instruction, out _)
            ? instruction.ToString()
            : null;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        // The console may be read for longer than the guest's memory is there.
        shared?.Chipset.Uart.EndOffer();
        for (int index = owned.Count - 1; index >= 0; index--)
        {
            owned[index].Dispose();
        }

        owned.Clear();
    }

    private static void Check(MachineConfiguration configuration)
    {
        if (configuration.Cpus is < 1 or > MachineLayout.MaximumVcpus)
        {
            throw new UnusableInputException($"--cpus {configuration.Cpus}: a machine has 1 to {MachineLayout.MaximumVcpus} CPUs.");
        }

        const ulong Smallest = 16UL << 20;
        if (configuration.MemoryBytes is < Smallest or > MachineLayout.MaximumRam
            || configuration.MemoryBytes % Paging.LargePageSize != 0)
        {
            throw new UnusableInputException(string.Create(
                CultureInfo.InvariantCulture,
                $"--memory of {configuration.MemoryBytes} bytes: give a multiple of 2M from 16M to {MachineLayout.MaximumRam >> 30}G."));
        }
    }

    private static void MapMemory(KvmVm vm, GuestMemory memory, MappedMemory monitor)
    {
        ulong offset = 0;
        foreach (GuestRamRange range in memory.Ranges)
        {
            vm.AddMemory(range.Start.Value, memory.Mapping, offset, range.Length);
            offset += range.Length;
        }

        vm.AddMemory(MachineLayout.MonitorMachineBase, monitor, 0, monitor.Size);
    }

    private SharedMachine Share(
        MachineConfiguration configuration, int cpus, KvmSystem kvm, GuestMemory memory, MappedMemory monitor, CodePages code)
    {
        if (substrate.Unsupported is { } reason)
        {
            throw new HostUnsupportedException(reason);
        }

        KvmCpuidEntry[] supported = kvm.SupportedCpuid();

        // What user code executes natively must be what the guest's kernel believes in, or it does not save the registers it uses.
        KvmCpuidEntry[] visible = substrate.UserCpuidIsHosts ? HostCpu.Cpuid() : supported;
        ulong frequency = substrate.TscFrequency;
        MachineClock clock = new(frequency, substrate.TscOffset);
        MachineControl control = new();
        const uint IntelEbx = 0x756E_6547; // "Genu"
        bool intel = visible.Any(entry => entry.Function == 0 && entry.Ebx == IntelEbx);
        return new SharedMachine
        {
            Memory = memory,
            Monitor = monitor,
            Code = code,
            Patches = patches,
            Cpuid = new CpuidModel(visible, new CpuidConfiguration(cpus, frequency, intel)),
            SupportedCpuid = supported,
            Clock = clock,
            Chipset = new Chipset(
                cpus, clock, control, console, configuration.MemoryBytes, configuration.DebugExitPort),
            Control = control,
            Shootdown = new TlbShootdown(cpus, memory.FrameLimit, control.Kick),
            ParavirtualClock = new ParavirtualClock(memory, clock),
            UnownedMsrs = new UnownedMsrs(),
            Audit = configuration.Audit,
            KickRetryNanoseconds = (long)Math.Max(ShortestKickRetry, 2 * 1000 * substrate.ExitMicroseconds),
            MonitorIsNative = !substrate.MonitorEmulated,
            RemovalsNeedFlush = substrate.RemovalsNeedFlush,
        };
    }

    /// <summary>
    /// The 64-bit boot protocol (long mode, flat segments, interrupts off, RSI at the boot parameters), or a 32-bit one.
    /// </summary>
    private void EnterKernel(Vcpu vcpu)
    {
        if (boot.Mode == BootMode.ProtectedMode)
        {
            vcpu.StartUp.Begin(boot);
            return;
        }

        CpuState state = vcpu.State;
        state.Cr3 = boot.PageTableRoot.Value;
        state.GdtBase = boot.GdtBase.Value;
        state.GdtLimit = boot.GdtLimit;
        state.CodeSelector = boot.CodeSelector;
        state.StackSelector = boot.DataSelector;
        vcpu.Registers.Regs.Rip = boot.Entry.Value;
        vcpu.Registers.Regs.Rsi = boot.BootParameters.Value;
        vcpu.Registers.Regs.Rsp = boot.StackTop.Value;
    }

    private T Own<T>(T part)
        where T : IDisposable
    {
        owned.Add(part);
        return part;
    }
}
