using Dmp.Kvm.Machine;

namespace Dmp.Actors.Machine;

/// <summary>The first thing that made a run end.</summary>
public abstract record RunCause
{
    private RunCause()
    {
    }

    /// <summary>
    /// Whether the state of every vCPU is to be collected, because it may belong into the report: a reset can turn out to be a
    /// panic's, once the console is drained.
    /// </summary>
    public virtual bool WantsState => false;

    /// <summary>The guest ended on a vCPU.</summary>
    /// <param name="Stop">How.</param>
    public sealed record GuestStopped(VcpuStop Stop) : RunCause
    {
        /// <inheritdoc />
        public override bool WantsState => Stop is VcpuStop.GuestFailed or VcpuStop.Reset;
    }

    /// <summary>The text of --until stood on the console.</summary>
    public sealed record UntilSeen : RunCause;

    /// <summary>The guest kernel panicked and did not reset itself.</summary>
    public sealed record Panicked : RunCause
    {
        /// <inheritdoc />
        public override bool WantsState => true;
    }

    /// <summary>The time was up.</summary>
    /// <param name="Limit">The time.</param>
    public sealed record TimedOut(TimeSpan Limit) : RunCause
    {
        /// <inheritdoc />
        public override bool WantsState => true;
    }

    /// <summary>The user ended it.</summary>
    /// <param name="How">Which way.</param>
    /// <param name="ExitCode">Exit code that goes with it.</param>
    public sealed record EndedByUser(string How, int ExitCode) : RunCause;

    /// <summary>Our own failure.</summary>
    /// <param name="Reason">One line.</param>
    /// <param name="Failure">What was thrown, if anything.</param>
    public sealed record OwnFailure(string Reason, Exception? Failure) : RunCause
    {
        /// <inheritdoc />
        public override bool WantsState => true;
    }
}
