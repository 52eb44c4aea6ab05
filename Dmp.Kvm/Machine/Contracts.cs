using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;

namespace Dmp.Kvm.Machine;

/// <summary>What a machine is made of. Checked by <see cref="VirtualMachine.Create"/>.</summary>
public sealed record MachineConfiguration
{
    /// <summary>Path of a bzImage, an ELF64 vmlinux or a multiboot image.</summary>
    public required string KernelPath { get; init; }

    /// <summary>Path of the initial RAM disk, or null.</summary>
    public string? InitrdPath { get; init; }

    /// <summary>Kernel command line.</summary>
    public string CommandLine { get; init; } = "";

    /// <summary>Whether a bzImage is entered in 32-bit mode, also if it has a 64-bit entry.</summary>
    public bool Use32BitEntry { get; init; }

    /// <summary>
    /// Number of vCPUs, 1 to 16; null for the usual number: two, or one where the host has no second processor for this process or its
    /// KVM does not start a guest's other CPUs.
    /// </summary>
    public int? Cpus { get; init; }

    /// <summary>Guest RAM in bytes; a multiple of 2 MiB.</summary>
    public ulong MemoryBytes { get; init; } = 512UL << 20;

    /// <summary>Port of the debug-exit device, or null for none.</summary>
    public ushort? DebugExitPort { get; init; }

    /// <summary>
    /// Whether the virtual TLB is compared with the guest's page tables from time to time; a difference ends the run as an own failure.
    /// </summary>
    public bool Audit { get; init; }

    /// <summary>Whether guest code may be patched.</summary>
    public bool Patching { get; init; }

    /// <summary>Names of the templates that are switched off.</summary>
    public IReadOnlySet<string> DisabledTemplates { get; init; } = System.Collections.Frozen.FrozenSet<string>.Empty;
}

/// <summary>A machine: its vCPUs, its console and its counters. Implemented by <see cref="VirtualMachine"/>; faked in specs.</summary>
public interface IMachine : IDisposable
{
    /// <summary>The vCPUs; index is the APIC id.</summary>
    IReadOnlyList<IVcpu> Vcpus { get; }

    /// <summary>The serial console.</summary>
    ISerialConsole Console { get; }

    /// <summary>The patch engine, or null for a machine that only traps.</summary>
    IPatchEngine? Patching => null;
}

/// <summary>
/// One virtual CPU. <see cref="Run"/> belongs to one thread at a time (the vCPU's owner); the other members say who may call them.
/// </summary>
public interface IVcpu
{
    /// <summary>Index, equal to the APIC id.</summary>
    int Index { get; }

    /// <summary>
    /// Runs guest code on the calling thread until there is a reason to stop. After <see cref="VcpuStop.Paused"/> it may be
    /// called again; every other stop is final. An exception is an own failure (not the guest's): the state of the vCPU is kept
    /// and <see cref="DescribeState"/> works; Run may be called again to go on from the last completed instruction.
    /// </summary>
    VcpuStop Run();

    /// <summary>
    /// Makes <see cref="Run"/> return <see cref="VcpuStop.Paused"/> at the next safe point, also out of a halt or of the wait for its
    /// start-up; when it is not running, the next Run returns at once. Any thread.
    /// </summary>
    void RequestPause();

    /// <summary>The exit counters. Any thread may read them; each figure is exact, their combination may be torn.</summary>
    ExitTable Exits { get; }

    /// <summary>The vCPU's halts, or null when it does not measure them. Any thread may read it.</summary>
    WakeClock? WakeClock => null;

    /// <summary>Registers, code bytes and last exits for a failure report. Only while Run is not executing.</summary>
    string DescribeState();
}

/// <summary>Why <see cref="IVcpu.Run"/> returned.</summary>
public abstract record VcpuStop
{
    private VcpuStop()
    {
    }

    /// <summary>A pause was requested; the vCPU is at a safe point between two guest instructions.</summary>
    public sealed record Paused : VcpuStop;

    /// <summary>The guest switched the machine off.</summary>
    public sealed record PoweredOff : VcpuStop;

    /// <summary>The guest reset the machine.</summary>
    /// <param name="How">Which way it went.</param>
    public sealed record Reset(string How) : VcpuStop;

    /// <summary>The guest wrote to the debug-exit port.</summary>
    /// <param name="Value">The value written.</param>
    public sealed record DebugExit(uint Value) : VcpuStop;

    /// <summary>The guest cannot go on: triple fault, an instruction nobody can emulate, halted for good.</summary>
    /// <param name="Reason">One line that says what happened, where.</param>
    /// <param name="State">Registers, code bytes, last exits.</param>
    public sealed record GuestFailed(string Reason, string State) : VcpuStop;
}

/// <summary>The guest's serial console, seen from the host. Any one thread reads, any one thread writes.</summary>
public interface ISerialConsole
{
    /// <summary>Takes what the guest has written since the last call, in order, nothing lost.</summary>
    /// <param name="buffer">Where to put the bytes.</param>
    /// <returns>Bytes taken; 0 when there are none now.</returns>
    int TakeOutput(Span<byte> buffer);

    /// <summary>
    /// Waits until there is output, the time is up or <see cref="EndWait"/> was called. For a dedicated reader thread.
    /// </summary>
    /// <returns>Whether there is output.</returns>
    bool WaitForOutput(TimeSpan timeout);

    /// <summary>Ends the wait of the reader, or its next one. Any thread.</summary>
    void EndWait();

    /// <summary>Queues input for the guest.</summary>
    /// <returns>Bytes accepted; fewer than given when the input queue is full.</returns>
    int PutInput(ReadOnlySpan<byte> bytes);
}
