using Dmp.Actors.Quiesce;
using Dmp.Actors.Vcpus;

namespace Dmp.Actors.Specs.Quiesce;

/// <summary>What holds in every world, and at its end.</summary>
internal static class QuiesceInvariants
{
    /// <summary>What holds at any time.</summary>
    public static void Check(QuiesceWorld world)
    {
        bool ending = world.Pauser.Phase == QuiesceWorld.UserPhase.Ending;
        if (world.WriterWrites)
        {
            Assert.Equal(QuiescePhase.Writing, world.Quiesce.Phase);
            All(world, side => Stands(side, QuiesceWorld.Coordinator) || (ending && IsOver(side)));
        }

        if (world.Pauser.Phase == QuiesceWorld.UserPhase.Paused)
        {
            All(world, side => Stands(side, QuiesceWorld.User));
        }

        All(world, side => side.State.Phase != VcpuPhase.Running || side.State.Holders.IsEmpty);
        Assert.Equal(world.Quiesce.Phase == QuiescePhase.Stopping, world.TimerRuns);
    }

    /// <summary>What holds when nothing more can happen.</summary>
    public static void CheckEnd(QuiesceWorld world, int commits)
    {
        Assert.Equal(QuiescePhase.Idle, world.Quiesce.Phase);
        Assert.Equal(Enumerable.Range(1, commits).Select(id => (long)id), world.Answers.Select(IdOf).Order());
        bool ended = world.Pauser.Phase == QuiesceWorld.UserPhase.Ending;
        All(world, side => IsOver(side) || (!ended && side.State.Phase == VcpuPhase.Running && side.State.Holders.IsEmpty));
        All(world, side => side.State.Pauses.IsEmpty && side.State.Stops.IsEmpty && (!ended || side.State.ThreadEnded));
    }

    private static void All(QuiesceWorld world, Predicate<QuiesceWorld.Side> holds)
    {
        foreach (QuiesceWorld.Side side in world.Sides)
        {
            if (!holds(side))
            {
                Assert.Fail($"vCPU {side.State.Vcpu} in {world.Key}");
            }
        }
    }

    private static bool Stands(QuiesceWorld.Side side, Akka.Actor.IActorRef holder) =>
        side.State.Phase == VcpuPhase.Paused && side.State.Holders.Contains(holder);

    private static bool IsOver(QuiesceWorld.Side side) => side.State.Phase is VcpuPhase.Crashed or VcpuPhase.Stopped;

    private static long IdOf(object answer) => answer switch
    {
        QuiesceProtocol.Committed committed => committed.RequestId,
        _ => ((QuiesceProtocol.Aborted)answer).RequestId,
    };
}
