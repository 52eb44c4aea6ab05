using Dmp.Actors.Console;
using Dmp.Actors.Journal;

namespace Dmp.Actors.Machine;

/// <summary>What a run is to do beyond running.</summary>
public sealed record RunOptions
{
    /// <summary>Where console output goes.</summary>
    public required IConsoleSink Sink { get; init; }

    /// <summary>Text that ends the run with success, or null.</summary>
    public string? Until { get; init; }

    /// <summary>Time after which the run is ended, or null.</summary>
    public TimeSpan? Timeout { get; init; }

    /// <summary>Where the patch journal is, or null to keep patches for this run only.</summary>
    public JournalConnection? Journal { get; init; }

    /// <summary>Identity of the kernel: its patches in the journal are its own.</summary>
    public string KernelId { get; init; } = "unknown";

    /// <summary>Whether patches of earlier runs of this kernel are replayed.</summary>
    public bool Replay { get; init; } = true;

    /// <summary>Clock of the counters and phases.</summary>
    public TimeProvider Clock { get; init; } = TimeProvider.System;
}
