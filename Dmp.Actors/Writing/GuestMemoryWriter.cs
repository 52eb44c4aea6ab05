using System.Collections.Immutable;
using Akka.Actor;
using Dmp.Actors.Quiesce;
using Dmp.Kvm.Patching;
using static Dmp.Actors.Writing.WriterProtocol;

namespace Dmp.Actors.Writing;

/// <summary>
/// The only one that changes guest code bytes, and only while the coordinator holds the world still. Should it fail in the middle, it
/// takes back what it has applied, answers, and is restarted: the guest never runs with half a batch.
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
            foreach (PatchPlan plan in write.Reverts)
            {
                if (engine.Revert(plan.Window))
                {
                    reverted.Add(plan);
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
            foreach (PreparedPatch patch in write.Patches)
            {
                _ = engine.Revert(patch.Plan.Window);
            }

            Sender.Tell(new WriteFailed(write.Epoch, $"{failure.GetType().Name}: {failure.Message}"));
            throw;
        }

        Sender.Tell(new Written(write.Epoch, applied.ToImmutable(), failed.ToImmutable(), reverted.ToImmutable()));
    }
}
