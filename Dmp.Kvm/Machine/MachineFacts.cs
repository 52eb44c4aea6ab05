namespace Dmp.Kvm.Machine;

/// <summary>
/// What a machine knows about itself beyond its counters. A machine that knows some of it implements this interface; every
/// member it leaves alone is null, and the report then has no such field. Only valid until the machine is disposed.
/// </summary>
public interface IMachineFacts
{
    /// <summary>Identity of the kernel image: build id or hash.</summary>
    string? KernelId => null;

    /// <summary>What the host was measured to be.</summary>
    HostFacts? Host => null;

    /// <summary>Port accesses that no device answered, by port.</summary>
    IReadOnlyDictionary<ushort, long>? UnownedPorts => null;

    /// <summary>Names a guest address as symbol+offset; null when it is in none.</summary>
    string? Symbol(ulong address) => null;

    /// <summary>Disassembles the guest instruction at an address; null when it cannot be read.</summary>
    string? Instruction(ulong address) => null;
}

/// <summary>What the host was measured to be; what was not measured is null.</summary>
public sealed record HostFacts
{
    /// <summary>"emulated" or "native": how CPL0 code runs.</summary>
    public string? Cpl0 { get; init; }

    /// <summary>"seen" or "unseen": whether page-table writes from the host side take effect.</summary>
    public string? HostPageTableWrites { get; init; }

    /// <summary>What one exit costs, in microseconds.</summary>
    public double? ExitMicroseconds { get; init; }

    /// <summary>The strategies that were picked.</summary>
    public IReadOnlyList<string>? Strategies { get; init; }
}
