using Dmp.Actors.Quiesce;
using Dmp.Actors.Vcpus;
using Dmp.Actors.Writing;

namespace Dmp.Actors.Specs.Quiesce;

/// <summary>Not examples but all there is: every order in which the messages of a few transactions can arrive.</summary>
public class QuiesceStateMachineSpecs
{
    [Theory(DisplayName = "In every order of events: code is written only while all stand, all go on, and every commit is answered once")]
    [InlineData(3, 1, 0, false)]
    [InlineData(3, 1, 1, false)]
    [InlineData(3, 2, 0, false)]
    [InlineData(2, 2, 1, false)]
    [InlineData(2, 3, 0, false)]
    [InlineData(2, 1, 1, true)]
    [InlineData(3, 2, 1, true)]
    [InlineData(3, 3, 1, false)]
    public void Every_order(int vcpus, int commits, int crashes, bool withUser)
    {
        var seen = new HashSet<string>();
        var open = new Stack<QuiesceWorld>([QuiesceWorld.Running(vcpus, commits, crashes, withUser)]);
        int ends = 0;
        while (open.TryPop(out QuiesceWorld? world))
        {
            if (!seen.Add(world.Key))
            {
                continue;
            }

            Check(world);
            (string Name, QuiesceWorld After)[] steps = [.. world.Steps()];
            if (steps.Length == 0)
            {
                ends++;
                CheckEnd(world, commits);
            }

            foreach ((_, QuiesceWorld after) in steps)
            {
                open.Push(after);
            }
        }

        // A model in which nothing goes on would pass all checks.
        Assert.InRange(seen.Count, 50, int.MaxValue);
        Assert.NotEqual(0, ends);
    }

    [Fact(DisplayName = "Words of an epoch that is over change nothing while the next one is under way")]
    public void Late_words()
    {
        QuiesceState state = Next(Next(QuiesceState.Initial([0, 1]), Ask(1)).State, new QuiesceEvent.TimedOut(1)).State;
        state = Next(state, Ask(2)).State;
        foreach (QuiesceEvent late in new QuiesceEvent[]
                 {
                     new QuiesceEvent.Stood(1, 0), new QuiesceEvent.Declined(1, 0, "late"), new QuiesceEvent.TimedOut(1),
                     new QuiesceEvent.Wrote(new WriterProtocol.Written(1, [], [], [])),
                     new QuiesceEvent.WriterFailed(new WriterProtocol.WriteFailed(1, "late", [])),
                     new QuiesceEvent.Wrote(new WriterProtocol.Written(2, [], [], [])),
                 })
        {
            QuiesceTransition transition = Next(state, late);
            Assert.Equal(state, transition.State);
            Assert.Empty(transition.Effects);
        }
    }

    [Fact(DisplayName = "A vCPU that stands after its epoch was given up is let go")]
    public void Late_stop()
    {
        QuiesceState idle = Next(Next(QuiesceState.Initial([0, 1]), Ask(1)).State, new QuiesceEvent.TimedOut(1)).State;
        Assert.Equal(QuiescePhase.Idle, idle.Phase);
        Assert.Equal([new QuiesceEffect.Release(1)], Next(idle, new QuiesceEvent.Stood(1, 1)).Effects);
    }

    [Fact(DisplayName = "An abort says which vCPUs did not stop, and which one cannot")]
    public void Reasons()
    {
        QuiesceState state = Next(QuiesceState.Initial([0, 1, 2]), Ask(1)).State;
        state = Next(state, new QuiesceEvent.Stood(1, 1)).State;
        Assert.Equal("vCPU 0, 2 did not stop in time", Reason(Next(state, new QuiesceEvent.TimedOut(1))));
        Assert.Equal("vCPU 2 cannot be stopped: it crashed", Reason(Next(state, new QuiesceEvent.Declined(1, 2, "it crashed"))));
    }

    private static void Check(QuiesceWorld world)
    {
        if (world.WriterWrites)
        {
            Assert.Equal(QuiescePhase.Writing, world.Quiesce.Phase);
            Assert.All(world.Sides, side =>
            {
                Assert.Equal(VcpuPhase.Paused, side.State.Phase);
                Assert.Contains(QuiesceWorld.Coordinator, side.State.Holders);
            });
        }

        Assert.Equal(world.Quiesce.Phase == QuiescePhase.Stopping, world.TimerRuns);
    }

    private static void CheckEnd(QuiesceWorld world, int commits)
    {
        Assert.Equal(QuiescePhase.Idle, world.Quiesce.Phase);
        Assert.Equal(Enumerable.Range(1, commits).Select(id => (long)id), world.Answers.Select(IdOf).Order());
        Assert.All(world.Sides, side =>
        {
            if (side.State.Phase != VcpuPhase.Crashed)
            {
                Assert.Equal((VcpuPhase.Running, 0), (side.State.Phase, side.State.Holders.Count));
            }
        });
        Assert.Equal("", world.UserNext);
    }

    private static long IdOf(object answer) => answer switch
    {
        QuiesceProtocol.Committed committed => committed.RequestId,
        _ => ((QuiesceProtocol.Aborted)answer).RequestId,
    };

    private static QuiesceTransition Next(QuiesceState state, QuiesceEvent happened) => QuiesceStateMachine.Next(state, happened);

    private static QuiesceEvent.Asked Ask(long id) => new(new QuiesceProtocol.Commit(id, id, [], []));

    private static string Reason(QuiesceTransition transition) => Assert.IsType<QuiesceProtocol.Aborted>(
        Assert.Single(transition.Effects.OfType<QuiesceEffect.Answer>()).Message).Reason;
}
