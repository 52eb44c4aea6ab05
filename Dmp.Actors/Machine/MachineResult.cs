using System.Collections.Immutable;
using Dmp.Actors.Exits;
using Dmp.Actors.Planning;

namespace Dmp.Actors.Machine;

/// <summary>State of a vCPU when the run had ended.</summary>
/// <param name="Vcpu">Index of the vCPU.</param>
/// <param name="State">Text for people.</param>
public sealed record VcpuDescription(int Vcpu, string State);

/// <summary>What came of a run.</summary>
/// <param name="Outcome">How it ended.</param>
/// <param name="Summary">What it cost.</param>
/// <param name="UntilAt">When the text of --until stood on the console, if it did.</param>
/// <param name="Vcpus">State of the vCPUs, after a failure.</param>
/// <param name="Unfinished">Steps of the shutdown that did not end in time, one line each.</param>
/// <param name="ThreadsEnded">Whether no thread of ours touches the machine any more, so that it may be disposed.</param>
public sealed record MachineResult(
    RunOutcome Outcome,
    ExitSummary Summary,
    TimeSpan? UntilAt,
    ImmutableArray<VcpuDescription> Vcpus,
    ImmutableArray<string> Unfinished,
    bool ThreadsEnded)
{
    /// <summary>What patching came to; null for a machine that only traps.</summary>
    public PatchSummary? Patches { get; init; }

    /// <summary>How long the world was stopped for each patch transaction, in microseconds, sorted.</summary>
    public ImmutableArray<double> StopMicroseconds { get; init; } = [];
}
