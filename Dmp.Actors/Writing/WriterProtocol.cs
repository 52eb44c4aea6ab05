using System.Collections.Immutable;
using Dmp.Actors.Quiesce;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Writing;

/// <summary>Messages of <see cref="GuestMemoryWriter"/>.</summary>
public static class WriterProtocol
{
    /// <summary>Change guest code; every vCPU is paused. Answered with <see cref="Written"/> or <see cref="WriteFailed"/>;
    /// not at all when the guest must not go on (see <see cref="GuestCodeDamagedException"/>).</summary>
    /// <param name="Epoch">The epoch in which the world is stopped.</param>
    /// <param name="Patches">Patches to apply.</param>
    /// <param name="Reverts">Patches to take back.</param>
    public sealed record Write(long Epoch, ImmutableArray<PreparedPatch> Patches, ImmutableArray<PatchPlan> Reverts);

    /// <summary>It is done.</summary>
    /// <param name="Epoch">The epoch.</param>
    /// <param name="Applied">Patches in the guest's code now.</param>
    /// <param name="Failed">Patches that are not; their bytes are the guest's.</param>
    /// <param name="Reverted">Patches taken back.</param>
    public sealed record Written(
        long Epoch,
        ImmutableArray<PatchPlan> Applied,
        ImmutableArray<QuiesceProtocol.FailedPatch> Failed,
        ImmutableArray<PatchPlan> Reverted);

    /// <summary>The writer failed in the middle, and has taken back what it had applied.</summary>
    /// <param name="Epoch">The epoch.</param>
    /// <param name="Reason">What failed.</param>
    /// <param name="Reverted">Patches that it had taken back before; they are not put in again.</param>
    public sealed record WriteFailed(long Epoch, string Reason, ImmutableArray<PatchPlan> Reverted);
}
