using Dmp.Kvm.Machine;

namespace Dmp.Host.Running;

/// <summary>What a run is to be.</summary>
internal sealed record RunPlan
{
    /// <summary>What the machine is made of.</summary>
    public required MachineConfiguration Machine { get; init; }

    /// <summary>Mode, as the report names it.</summary>
    public required string Mode { get; init; }

    /// <summary>Where the patch journal is, as the user says it; null for what the settings say.</summary>
    public string? Journal { get; init; }

    /// <summary>Whether patches of earlier runs are replayed.</summary>
    public bool Replay { get; init; } = true;

    /// <summary>Text that ends the run with success, or null.</summary>
    public string? Until { get; init; }

    /// <summary>Time after which the run is ended, or null.</summary>
    public TimeSpan? Timeout { get; init; }

    /// <summary>Where the report goes, or null.</summary>
    public string? ReportPath { get; init; }
}
