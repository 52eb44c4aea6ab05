using System.Diagnostics;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Probe;

/// <summary>What a host's KVM was measured to do. Decides strategies; nothing about a host is assumed.</summary>
internal sealed record Substrate
{
    private const int ExitRuns = 200;
    private const int MonitorLoops = 2000;
    private const int MonitorRuns = 9;
    private const double EmulatedNanoseconds = 50;

    /// <summary>Nanoseconds of one simple instruction at CPL 0.</summary>
    internal required double MonitorInstructionNanoseconds { get; init; }

    /// <summary>Microseconds of an exit to user space and back, with CPL 3 code in between.</summary>
    internal required double ExitMicroseconds { get; init; }

    /// <summary>Whether a present entry that the host removes is seen without help from inside the VM.</summary>
    internal required bool HostRemovalsSeen { get; init; }

    /// <summary>Whether an entry that the host makes present is seen. Dmp cannot run without it.</summary>
    internal required bool HostFillsSeen { get; init; }

    /// <summary>Whether SYSCALL at CPL 3 enters CPL 0, as on hardware.</summary>
    internal required bool SyscallEntersCpl0 { get; init; }

    /// <summary>Whether CPUID at CPL 3 shows the host's CPU, whatever KVM was told.</summary>
    internal required bool UserCpuidIsHosts { get; init; }

    /// <summary>Whether RDGSBASE and WRGSBASE work at CPL 3.</summary>
    internal required bool UserFsGsBase { get; init; }

    /// <summary>What the guest's TSC reads minus what the host's does.</summary>
    internal required ulong TscOffset { get; init; }

    /// <summary>Ticks of the TSC per second.</summary>
    internal required ulong TscFrequency { get; init; }

    /// <summary>Whether CPL 0 code is emulated by the host kernel.</summary>
    internal bool MonitorEmulated => MonitorInstructionNanoseconds > EmulatedNanoseconds;

    /// <summary>
    /// Whether code in the VM that removes an entry has to flush the TLB behind it, as on a processor. Also where the host's own removals go
    /// unseen, if CPL 0 is native: a KVM that shadows our tables lets them be written to then, and looks at what was written at the next flush.
    /// Where it emulates the write it acts on it at once.
    /// </summary>
    internal bool RemovalsNeedFlush => HostRemovalsSeen || !MonitorEmulated;

    /// <summary>Why no guest can run here, in a sentence for the user; null when one can.</summary>
    internal string? Unsupported =>
        !HostFillsSeen ? "This KVM does not see page-table entries that the host makes present: Dmp cannot run here. See ./dmp probe."
        : !HostRemovalsSeen && !MonitorEmulated
            ? "This KVM keeps page tables of its own beside Dmp's, as with EPT or NPT switched off (kvm_intel.ept, kvm_amd.npt): guests fail there. "
                + "See docs/hardware.md."
        : null;

    /// <summary>Measures a host. Takes some tens of milliseconds.</summary>
    /// <exception cref="HostUnsupportedException">It cannot run deprivileged guests.</exception>
    internal static Substrate Measure(KvmSystem kvm)
    {
        ReadOnlySpan<byte> halt = [0xF4];
        using ProbeVm vm = new(kvm);
        if (vm.RunUser(halt) != (ushort)Cpu.ExceptionVector.GeneralProtection)
        {
            throw new HostUnsupportedException("HLT at CPL 3 does not fault on this KVM: it cannot run deprivileged guests.");
        }

        (bool fills, bool removals) = MeasureTables(vm);
        return new Substrate
        {
            ExitMicroseconds = vm.MeasureUser(halt, ExitRuns),
            MonitorInstructionNanoseconds = MeasureMonitor(vm),
            HostFillsSeen = fills,
            HostRemovalsSeen = removals,
            SyscallEntersCpl0 = vm.RunUser([0x0F, 0x05]) == MachineLayout.SyscallPort,
            UserCpuidIsHosts = MeasureCpuid(vm),
            UserFsGsBase = MeasureBases(vm),
            TscOffset = vm.Vcpu.SharesHostTsc ? 0 : MeasureTscOffset(vm),
            TscFrequency = (ulong)vm.Vcpu.TscKilohertz() * 1000,
        };
    }

    private static double MeasureMonitor(ProbeVm vm)
    {
        // mov ecx, loops; dec ecx; jnz -4; out port, al: two instructions a loop
        byte[] loop = [0xB9, 0, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xFC, 0xE6, MachineLayout.ShadowProgramDonePort];
        byte[] once = [.. loop];
        BitConverter.TryWriteBytes(loop.AsSpan(1), MonitorLoops);
        BitConverter.TryWriteBytes(once.AsSpan(1), 1);
        return Math.Max(0, Fastest(vm, loop) - Fastest(vm, once)) / (2 * MonitorLoops);
    }

    /// <summary>Nanoseconds of the fastest of some runs: an exit alone can take longer than all of the code.</summary>
    private static double Fastest(ProbeVm vm, ReadOnlySpan<byte> code)
    {
        double fastest = double.MaxValue;
        for (int run = 0; run < MonitorRuns; run++)
        {
            long start = Stopwatch.GetTimestamp();
            _ = vm.RunMonitor(code);
            fastest = Math.Min(fastest, Stopwatch.GetElapsedTime(start).TotalNanoseconds);
        }

        return fastest;
    }

    private static (bool Fills, bool Removals) MeasureTables(ProbeVm vm)
    {
        // mov rax, [rbx]; hlt
        ReadOnlySpan<byte> read = [0x48, 0x8B, 0x03, 0xF4];
        const ushort Faults = (ushort)Cpu.ExceptionVector.PageFault;
        vm.Vcpu.Regs.Rbx = ProbeVm.SmallPage;
        bool absent = vm.RunUser(read) == Faults;
        vm.SmallEntry = ProbeVm.DataEntry;
        bool filled = vm.RunUser(read) != Faults;
        vm.SmallEntry = 0;

        // A TLB entry of real hardware goes with the CR3 load that every register load from outside may or may not do; do one.
        _ = vm.RunMonitor([0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8, 0xE6, MachineLayout.ShadowProgramDonePort]);
        bool removed = vm.RunUser(read) == Faults;
        return (absent && filled, removed);
    }

    private static bool MeasureBases(ProbeVm vm)
    {
        // wrgsbase rbx; rdgsbase rax; hlt
        const ulong Base = 0x1234_5000;
        vm.Vcpu.Regs.Rbx = Base;
        return vm.RunUser([0xF3, 0x48, 0x0F, 0xAE, 0xDB, 0xF3, 0x48, 0x0F, 0xAE, 0xC8, 0xF4])
            == (ushort)Cpu.ExceptionVector.GeneralProtection
            && vm.Vcpu.Regs.Rax == Base && vm.Vcpu.Sregs.Gs.Base == Base;
    }

    private static bool MeasureCpuid(ProbeVm vm)
    {
        // KVM's own answer for the hypervisor leaf is its signature; a native CPUID shows what runs this host, or nothing.
        const uint FeatureLeaf = 1;
        vm.Vcpu.Regs.Rax = FeatureLeaf;
        vm.Vcpu.Regs.Rcx = 0;
        _ = vm.RunUser([0x0F, 0xA2, 0xF4]);
        (int _, int _, int ecx, int edx) = System.Runtime.Intrinsics.X86.X86Base.CpuId((int)FeatureLeaf, 0);
        KvmCpuidEntry offered = vm.OfferedCpuid(FeatureLeaf);
        bool showsHost = (uint)vm.Vcpu.Regs.Rcx == (uint)ecx && (uint)vm.Vcpu.Regs.Rdx == (uint)edx;
        bool showsOffer = (uint)vm.Vcpu.Regs.Rcx == offered.Ecx && (uint)vm.Vcpu.Regs.Rdx == offered.Edx;
        return showsHost && !showsOffer;
    }

    private static ulong MeasureTscOffset(ProbeVm vm)
    {
        // rdtsc; hlt: the guest's reading lies between two of the host's, a few microseconds apart. No offset is smaller than that.
        const ulong Negligible = 100_000_000;
        ulong before = HostTsc.Read();
        _ = vm.RunUser([0x0F, 0x31, 0xF4]);
        ulong guest = (uint)vm.Vcpu.Regs.Rax | (vm.Vcpu.Regs.Rdx << 32);
        ulong offset = guest - before;
        return offset < Negligible ? 0 : offset;
    }
}
