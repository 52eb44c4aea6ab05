using System.Collections.Immutable;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Quiesce;

/// <summary>
/// Messages of <see cref="QuiesceCoordinator"/>. Every <see cref="Commit"/> gets exactly one answer: <see cref="Committed"/> or
/// <see cref="Aborted"/>.
/// </summary>
public static class QuiesceProtocol
{
    /// <summary>Stop all vCPUs, change guest code, and let them go on. Waits its turn: one epoch at a time.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Transaction">The journal's number of the transaction; passed through.</param>
    /// <param name="Patches">Patches to apply.</param>
    /// <param name="Reverts">Patches to take back.</param>
    public sealed record Commit(
        long RequestId, long Transaction, ImmutableArray<PreparedPatch> Patches, ImmutableArray<PatchPlan> Reverts);

    /// <summary>The world was stopped, and the writer has done what it could.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Transaction">The transaction.</param>
    /// <param name="Applied">Patches in the guest's code now.</param>
    /// <param name="Failed">Patches that are not, with the reason.</param>
    /// <param name="Reverted">Patches that are not in the guest's code any more.</param>
    public sealed record Committed(
        long RequestId,
        long Transaction,
        ImmutableArray<PatchPlan> Applied,
        ImmutableArray<FailedPatch> Failed,
        ImmutableArray<PatchPlan> Reverted);

    /// <summary>A patch that was not applied.</summary>
    /// <param name="Plan">The patch.</param>
    /// <param name="Reason">Why not.</param>
    public sealed record FailedPatch(PatchPlan Plan, string Reason);

    /// <summary>No patch was applied.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Commit">What was asked for.</param>
    /// <param name="Reason">Why.</param>
    public sealed record Aborted(long RequestId, Commit Commit, string Reason)
    {
        /// <summary>Patches that are not in the guest's code any more: the writer had taken them back before it failed.</summary>
        public ImmutableArray<PatchPlan> Reverted { get; init; } = [];
    }

    /// <summary>How long the world was stopped. Answered with <see cref="StopTimes"/>.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record GetStopTimes(long RequestId);

    /// <summary>How long the world was stopped, epoch by epoch.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Microseconds">From the first vCPU's stop to the last one's re-entry, sorted.</param>
    public sealed record StopTimes(long RequestId, ImmutableArray<double> Microseconds);
}
