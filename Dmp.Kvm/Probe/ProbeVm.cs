using System.Diagnostics;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Monitor;

namespace Dmp.Kvm.Probe;

/// <summary>
/// A VM of one vCPU with the monitor and 2 MiB of memory, in which short pieces of code run at CPL 3 or CPL 0 until they exit. For
/// measuring what a host's KVM does. One thread.
/// </summary>
internal sealed class ProbeVm : IDisposable
{
    /// <summary>Virtual and machine address of the code that runs.</summary>
    internal const ulong CodeAddress = 0x1_0000;

    /// <summary>Virtual and machine address of data.</summary>
    internal const ulong DataAddress = 0x2_0000;

    /// <summary>Virtual address of a page that only <see cref="SmallEntry"/> maps.</summary>
    internal const ulong SmallPage = Paging.LargePageSize;

    private const ulong StackAddress = 0x3_0000;
    private const int ExceptionFrameWords = 5;
    private const int KickedLimit = 1000;

    private const int RootTable = 0;
    private const int PointerTable = 1;
    private const int DirectoryTable = 2;
    private const int SmallTable = 3;

    private const PageEntry Everything = PageEntry.Present | PageEntry.Writable | PageEntry.User | PageEntry.Accessed;

    private readonly KvmVm vm;
    private readonly KvmVcpu vcpu;
    private readonly KvmCpuidEntry[] cpuid;
    private readonly MappedMemory memory;
    private readonly MappedMemory monitor;
    private readonly RealRegisters registers;

    // As a guest that uses FSGSBASE: where KVM knows the feature, the real CR4 follows.
    private readonly CpuState state = new() { Cpl = 3, Cr4 = Cr4.PhysicalAddressExtension | Cr4.FsGsBase };

    internal ProbeVm(KvmSystem kvm)
    {
        vm = kvm.CreateVm();
        memory = MappedMemory.Create("dmp-probe", Paging.LargePageSize);
        monitor = MappedMemory.Create("dmp-probe-monitor", MachineLayout.MonitorSize(1));
        MonitorImage.Write(monitor, 1);
        vm.AddMemory(0, memory, 0, memory.Size);
        vm.AddMemory(MachineLayout.MonitorMachineBase, monitor, 0, monitor.Size);
        vcpu = vm.CreateVcpu(0);
        cpuid = kvm.SupportedCpuid();
        vcpu.SetCpuid(cpuid);
        Table(RootTable, 0) = TableAddress(PointerTable) | (ulong)Everything;
        Table(RootTable, MonitorImage.Pml4Slot) = MonitorImage.Pml4Entry;
        Table(PointerTable, 0) = TableAddress(DirectoryTable) | (ulong)Everything;
        Table(DirectoryTable, 0) = (ulong)(Everything | PageEntry.Large | PageEntry.Dirty);
        Table(DirectoryTable, 1) = TableAddress(SmallTable) | (ulong)Everything;
        registers = new RealRegisters(vcpu, 0, cpuid, monitor: null);
    }

    /// <summary>The vCPU, for its registers.</summary>
    internal KvmVcpu Vcpu => vcpu;

    /// <summary>The page-table entry of <see cref="SmallPage"/>.</summary>
    internal ref ulong SmallEntry => ref Table(SmallTable, 0);

    /// <summary>What KVM was told to answer to CPUID.</summary>
    internal KvmCpuidEntry OfferedCpuid(uint function) => Array.Find(cpuid, entry => entry.Function == function);

    /// <summary>An entry that maps <see cref="SmallPage"/> to <see cref="DataAddress"/>.</summary>
    internal static ulong DataEntry => DataAddress | (ulong)(Everything | PageEntry.Dirty);

    /// <summary>Runs code at CPL 3 until it exits.</summary>
    /// <param name="code">The machine code.</param>
    /// <returns>The port of the exit: an exception's vector, or one of the monitor's.</returns>
    internal ushort RunUser(ReadOnlySpan<byte> code)
    {
        Load(code);
        vcpu.Regs.Rip = CodeAddress;
        vcpu.Regs.Rsp = StackAddress;
        registers.Load(state, TableAddress(RootTable), stepping: false);
        return Run();
    }

    /// <summary>Runs code at CPL 0 until it exits.</summary>
    internal ushort RunMonitor(ReadOnlySpan<byte> code)
    {
        ulong offset = MachineLayout.VcpuBlock(0) + MachineLayout.ShadowProgramOffset;
        code.CopyTo(monitor.Slice(offset, code.Length));
        registers.LoadForMonitor(MachineLayout.MonitorBase + offset, TableAddress(RootTable), MonitorImage.StackTop(0));
        return Run();
    }

    /// <summary>RIP that the last exception pushed.</summary>
    internal ulong ExceptionRip => monitor.Word(
        MachineLayout.VcpuBlock(0) + MachineLayout.StackTopOffset - (ExceptionFrameWords * sizeof(ulong)));

    /// <summary>Time of a number of runs of code that is loaded already, in microseconds each.</summary>
    internal double MeasureUser(ReadOnlySpan<byte> code, int runs)
    {
        long start = Stopwatch.GetTimestamp();
        for (int run = 0; run < runs; run++)
        {
            _ = RunUser(code);
        }

        return Stopwatch.GetElapsedTime(start).TotalMicroseconds / runs;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        vcpu.Dispose();
        vm.Dispose();
        monitor.Dispose();
        memory.Dispose();
    }

    private ushort Run()
    {
        bool load = true;
        for (int attempt = 0; attempt < KickedLimit; attempt++)
        {
            KvmExitReason reason = vcpu.Run(load);
            load = false;
            if (reason == KvmExitReason.Io)
            {
                return vcpu.Exit.IoPort;
            }

            if (reason != KvmExitReason.Interrupted)
            {
                throw new HostUnsupportedException($"The probe's code ended with KVM exit {reason}: this KVM cannot run deprivileged guests.");
            }
        }

        throw new HostUnsupportedException("The probe's code was interrupted again and again.");
    }

    private void Load(ReadOnlySpan<byte> code) => code.CopyTo(memory.Slice(CodeAddress, code.Length));

    private static ulong TableAddress(int table) =>
        MachineLayout.MonitorMachineBase + MachineLayout.ShadowPool(0) + ((ulong)table * Paging.PageSize);

    private ref ulong Table(int table, int index) => ref monitor.Word(
        MachineLayout.ShadowPool(0) + ((ulong)table * Paging.PageSize) + ((ulong)index * Paging.EntrySize));
}
