using System.Globalization;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Probe;

/// <summary>Measures this host's KVM and says what follows, for people and scripts.</summary>
public static class SubstrateProbe
{
    /// <summary>Opens /dev/kvm and measures it. Takes some tens of milliseconds.</summary>
    /// <exception cref="HostUnsupportedException">This host cannot run a machine.</exception>
    public static ProbeReport Run()
    {
        using KvmSystem kvm = KvmSystem.Open();
        Substrate found = Substrate.Measure(kvm);
        return new ProbeReport([.. Findings(found), StartUp(StartUpProbe.Works(kvm))], Strategies(found));
    }

    /// <summary>Opens /dev/kvm, and no more.</summary>
    /// <exception cref="HostUnsupportedException">There is none, or none for this user.</exception>
    public static void RequireKvm()
    {
        using KvmSystem kvm = KvmSystem.Open();
    }

    /// <summary>The strategies that follow from what was measured.</summary>
    internal static IReadOnlyList<string> Strategies(Substrate found) => found.Unsupported is { } reason ? [reason] :
    [
        "guest kernel and guest user both run natively at CPL 3",
        found.RemovalsNeedFlush
            ? "shadow entries are removed by code in the VM, followed by a TLB flush"
            : "shadow entries are removed by code in the VM, for this KVM does not see the host remove them",
        "shadow entries are filled by the host when an access faults",
        found.SyscallEntersCpl0
            ? "SYSCALL enters the monitor at CPL 0"
            : "SYSCALL stays at CPL 3 and faults on the monitor's entry",
        found.UserCpuidIsHosts
            ? "the guest's CPUID model follows the host's CPU, which its user code sees"
            : "the guest's CPUID model follows what KVM supports",
    ];

    private static IReadOnlyList<ProbeFinding> Findings(Substrate found) =>
    [
        new("cpl0", found.MonitorEmulated ? "emulated" : "native", Text(
            $"{found.MonitorInstructionNanoseconds:F1} ns an instruction at CPL 0: an ordinary VMM runs its guest kernel there")),
        new("exit_us", Text($"{found.ExitMicroseconds:F1}"), "an exit to user space and back, with guest code in between"),
        new("host_page_table_fills", found.HostFillsSeen ? "seen" : "unseen", "entries that the host makes present"),
        new("host_page_table_writes", found.HostRemovalsSeen ? "seen" : "unseen", "present entries that the host changes or removes"),
        new("syscall", found.SyscallEntersCpl0 ? "enters CPL 0" : "stays at CPL 3", "where SYSCALL from guest user code leads"),
        new("user_cpuid", found.UserCpuidIsHosts ? "host" : "kvm", "what guest user code sees when it executes CPUID"),
        new("user_fsgsbase", found.UserFsGsBase ? "native" : "unavailable", "RDGSBASE and WRGSBASE at CPL 3: SWAPGS can be patched with them"),
        new("tsc_khz", Text($"{found.TscFrequency / 1000}"), "what the guest's clock counts with"),
    ];

    private static ProbeFinding StartUp(bool works) => new(
        "start_up", works ? "runs" : "fails", "real-mode code on its way to 64-bit mode, in single steps: it starts all vCPUs but the first");

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
