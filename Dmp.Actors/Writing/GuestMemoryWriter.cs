using System.Collections.Immutable;
using Akka.Actor;
using Dmp.Actors.Quiesce;
using Dmp.Kvm.Patching;
using static Dmp.Actors.Writing.WriterProtocol;

namespace Dmp.Actors.Writing;

/// <summary>
/// The only one that changes guest code bytes, and only while the coordinator holds the world still. Should it fail in the middle, it
/// takes back what it has applied, answers, and is restarted: the guest never runs with half a batch. When that fails too, it throws
/// <see cref="GuestCodeDamagedException"/> without an answer: the vCPUs stay where they are, and the machine ends.
/// </summary>
public sealed class GuestMemoryWriter : ReceiveActor
{
    private readonly IPatchEngine engine;

    /// <summary>Creates the actor; use <see cref="Props"/>.</summary>
    /// <param name="engine">Carries the changes out.</param>
    public GuestMemoryWriter(IPatchEngine engine)
    {
        this.engine = engine;
        Receive<Write>(OnWrite);
    }

    /// <summary>How to create the writer.</summary>
    /// <param name="engine">Carries the changes out.</param>
    public static Props Props(IPatchEngine engine) =>
        Akka.Actor.Props.Create(() => new GuestMemoryWriter(engine)).WithDispatcher(ControlSettings.Dispatcher);

    private void OnWrite(Write write)
    {
        var applied = ImmutableArray.CreateBuilder<PatchPlan>();
        var failed = ImmutableArray.CreateBuilder<QuiesceProtocol.FailedPatch>();
        var reverted = ImmutableArray.CreateBuilder<PatchPlan>();
        try
        {
            // The engine takes back all that it has at a window's address, for whatever bytes each was made.
            foreach (IGrouping<ulong, PatchPlan> window in write.Reverts.GroupBy(plan => plan.Window))
            {
                if (engine.Revert(window.Key))
                {
                    reverted.AddRange(window);
                }
            }

            foreach (PreparedPatch patch in write.Patches)
            {
                if (engine.TryApply(patch, out string reason))
                {
                    applied.Add(patch.Plan);
                }
                else
                {
                    failed.Add(new QuiesceProtocol.FailedPatch(patch.Plan, reason));
                }
            }
        }
        catch (Exception failure)
        {
            TakeBack(write, failure);
            Sender.Tell(new WriteFailed(write.Epoch, $"{failure.GetType().Name}: {failure.Message}", reverted.ToImmutable()));
            throw;
        }

        Sender.Tell(new Written(write.Epoch, applied.ToImmutable(), failed.ToImmutable(), reverted.ToImmutable()));
    }

    // All windows are tried, whatever happens to one. Should one fail, the coordinator gets no answer and lets nobody go.
    private void TakeBack(Write write, Exception failure)
    {
        Exception? second = null;
        foreach (PreparedPatch patch in write.Patches)
        {
            try
            {
                _ = engine.Revert(patch.Plan.Window);
            }
            catch (Exception thrown)
            {
                second ??= thrown;
            }
        }

        if (second is not null)
        {
            throw new GuestCodeDamagedException(
                $"a batch of patches failed ({failure.Message}) and cannot be taken back ({second.Message})", second);
        }
    }
}
