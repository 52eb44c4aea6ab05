using System.Globalization;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Machine;

/// <summary>How a run ended.</summary>
/// <param name="Detail">One line for people.</param>
public abstract record RunOutcome(string Detail)
{
    /// <summary>Whether somebody has to find out why; the state of the vCPUs then is part of the result.</summary>
    public bool IsFailure => this is GuestFailed or TimedOut or VmmFailed;

    /// <summary>The guest switched the machine off, or reset it: a machine here has one life.</summary>
    /// <param name="Detail">Which of the two.</param>
    public sealed record PoweredOff(string Detail) : RunOutcome(Detail);

    /// <summary>The text of --until stood on the console.</summary>
    public sealed record UntilSeen() : RunOutcome("the text of --until stands on the console");

    /// <summary>The guest wrote to the debug-exit port.</summary>
    /// <param name="Value">The value written.</param>
    public sealed record DebugExit(uint Value)
        : RunOutcome(string.Create(CultureInfo.InvariantCulture, $"debug exit with value {Value}"));

    /// <summary>The user ended the run.</summary>
    /// <param name="How">Which way.</param>
    /// <param name="ExitCode">Exit code that goes with it.</param>
    public sealed record EndedByUser(string How, int ExitCode) : RunOutcome($"ended by the user ({How})");

    /// <summary>The guest cannot go on.</summary>
    /// <param name="Detail">Why.</param>
    /// <param name="State">State of the vCPU it happened on, when it happened on one.</param>
    public sealed record GuestFailed(string Detail, string? State) : RunOutcome(Detail);

    /// <summary>The time was up.</summary>
    /// <param name="Limit">The time.</param>
    public sealed record TimedOut(TimeSpan Limit)
        : RunOutcome(string.Create(CultureInfo.InvariantCulture, $"not finished after {Limit.TotalSeconds} s"));

    /// <summary>Our own failure.</summary>
    /// <param name="Detail">What failed.</param>
    /// <param name="Failure">What was thrown, if anything.</param>
    public sealed record VmmFailed(string Detail, Exception? Failure) : RunOutcome(Detail);

    /// <summary>
    /// Judges a run after its last console output was read, because that can come later than what ended the run: a guest that
    /// resets itself may have panicked before, and the text of --until may be the last thing it wrote before it went.
    /// </summary>
    /// <param name="cause">What ended the run.</param>
    /// <param name="untilSeen">Whether the text of --until stood on the console.</param>
    /// <param name="panic">The line of a kernel panic, if there was one.</param>
    public static RunOutcome Of(RunCause cause, bool untilSeen, string? panic) => cause switch
    {
        RunCause.OwnFailure own => new VmmFailed(own.Reason, own.Failure),
        RunCause.EndedByUser user => new EndedByUser(user.How, user.ExitCode),

        // The text stood there before anything else happened; only its way through the pump was longer.
        _ when untilSeen => new UntilSeen(),
        RunCause.GuestStopped { Stop: VcpuStop.DebugExit exit } => new DebugExit(exit.Value),
        RunCause.GuestStopped { Stop: VcpuStop.GuestFailed failed } => new GuestFailed(failed.Reason, failed.State),
        _ when panic is not null => new GuestFailed(panic, State: null),
        RunCause.GuestStopped { Stop: VcpuStop.PoweredOff } => new PoweredOff("the guest powered off"),
        RunCause.GuestStopped { Stop: VcpuStop.Reset reset } => new PoweredOff($"guest reset ({reset.How})"),
        RunCause.TimedOut timedOut => new TimedOut(timedOut.Limit),
        _ => new VmmFailed($"the run ended with an unknown cause: {cause}", Failure: null),
    };
}
