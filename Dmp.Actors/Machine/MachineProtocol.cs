using System.Collections.Immutable;

namespace Dmp.Actors.Machine;

/// <summary>
/// Messages of <see cref="MachineSupervisor"/>. It also passes <see cref="Exits.ExitProtocol.GetTotals"/>,
/// <see cref="Exits.ExitProtocol.GetTopSites"/> and <see cref="Console.ConsoleProtocol.Input"/> on to the child they are for.
/// </summary>
public static class MachineProtocol
{
    /// <summary>Stages of a machine's life.</summary>
    public enum Stage
    {
        /// <summary>The vCPU threads are being created.</summary>
        Starting,

        /// <summary>All vCPUs run.</summary>
        Running,

        /// <summary>A pause is under way.</summary>
        Pausing,

        /// <summary>All vCPUs stand at safe points.</summary>
        Paused,

        /// <summary>The vCPUs are being resumed.</summary>
        Resuming,

        /// <summary>The run is over; the machine is being taken down.</summary>
        Ending,
    }

    /// <summary>
    /// Stop all vCPUs at safe points. Answered with <see cref="AllPaused"/>, <see cref="NotAllPaused"/> or <see cref="Refused"/>.
    /// </summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record PauseAll(long RequestId);

    /// <summary>Go on. Answered with <see cref="AllResumed"/>, <see cref="NotAllResumed"/> or <see cref="Refused"/>.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record ResumeAll(long RequestId);

    /// <summary>Which stage the machine is in. Answered with <see cref="Status"/>.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record GetStatus(long RequestId);

    /// <summary>End the run. No answer: the result follows.</summary>
    /// <param name="Cause">Why.</param>
    public sealed record End(RunCause Cause);

    /// <summary>All vCPUs stand at safe points.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record AllPaused(long RequestId);

    /// <summary>Some vCPUs did not stop in time; the others are resumed, and so are those as soon as they stop.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Missing">Which.</param>
    public sealed record NotAllPaused(long RequestId, ImmutableArray<int> Missing);

    /// <summary>All vCPUs run.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record AllResumed(long RequestId);

    /// <summary>Some vCPUs did not say that they run.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Missing">Which.</param>
    public sealed record NotAllResumed(long RequestId, ImmutableArray<int> Missing);

    /// <summary>The stage the machine is in.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Stage">The stage.</param>
    public sealed record Status(long RequestId, Stage Stage);

    /// <summary>The request is not legal in this stage.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Stage">The stage.</param>
    public sealed record Refused(long RequestId, Stage Stage);
}
