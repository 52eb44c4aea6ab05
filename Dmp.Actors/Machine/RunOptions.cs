using Dmp.Actors.Console;

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

    /// <summary>Clock of the counters and phases.</summary>
    public TimeProvider Clock { get; init; } = TimeProvider.System;
}
