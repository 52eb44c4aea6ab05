using Dmp.Actors.Quiesce;
using Dmp.Actors.Writing;
using FsCheck.Xunit;

namespace Dmp.Actors.Specs.Quiesce;

/// <summary>Not examples but all there is: every order in which the messages of a few transactions can arrive.</summary>
public class QuiesceStateMachineSpecs
{
    [Theory(DisplayName = "In every order of events: code is written only while all stand, all go on, and every commit is answered once")]
    [InlineData(3, 1, 1, 0, false, false)]
    [InlineData(3, 2, 0, 0, false, false)]
    [InlineData(3, 2, 1, 0, false, false)]
    [InlineData(2, 3, 1, 0, false, false)]
    [InlineData(3, 1, 0, 1, false, false)]
    [InlineData(3, 1, 1, 1, false, false)]
    [InlineData(2, 2, 1, 1, false, false)]
    [InlineData(2, 1, 0, 2, false, false)]
    [InlineData(3, 1, 0, 0, true, false)]
    [InlineData(2, 1, 1, 1, true, false)]
    [InlineData(3, 1, 0, 0, false, true)]
    [InlineData(2, 1, 1, 0, true, true)]
    public void Every_order(int vcpus, int commits, int failures, int pauses, bool shutdown, bool starting)
    {
        var limits = new WorldLimits(vcpus)
        {
            Commits = commits, Failures = failures, Pauses = pauses, Shutdown = shutdown, Starting = starting,
        };
        int ends = 0;

        // Depth first: a world whose successors are being looked at must not be its own successor, or something could go on for ever.
        var begun = new Dictionary<string, bool>();
        var path = new Stack<(string Key, Queue<QuiesceWorld> Next)>();
        Visit(QuiesceWorld.Of(limits));
        while (path.TryPeek(out (string Key, Queue<QuiesceWorld> Next) at))
        {
            if (at.Next.TryDequeue(out QuiesceWorld? next))
            {
                Visit(next);
            }
            else
            {
                begun[at.Key] = false;
                _ = path.Pop();
            }
        }

        // A model in which nothing goes on would pass all checks.
        Assert.InRange(begun.Count, 50, int.MaxValue);
        Assert.NotEqual(0, ends);

        void Visit(QuiesceWorld world)
        {
            string key = world.Key;
            if (!begun.TryAdd(key, true))
            {
                Assert.False(begun[key], $"this can go on for ever: {key}");
                return;
            }

            QuiesceInvariants.Check(world);
            WorldStep[] steps = [.. world.Steps()];
            if (steps.Length == 0)
            {
                ends++;
                QuiesceInvariants.CheckEnd(world, commits);
            }

            path.Push((key, new Queue<QuiesceWorld>(steps.Select(world.After))));
        }
    }

    [Property(DisplayName = "In any order of events on sixteen vCPUs the same holds, whatever fails, is paused, or ends", MaxTest = 100)]
    public void Many_vcpus(int seed, bool shutdown, bool starting)
    {
        var random = new Random(seed);
        int commits = random.Next(1, 6);
        QuiesceWorld world = QuiesceWorld.Of(new WorldLimits(16)
        {
            Commits = commits, Failures = random.Next(3), Pauses = random.Next(4), Shutdown = shutdown, Starting = starting,
        });

        // What only time brings about is rare, or nothing else would ever come to its end.
        double patience = random.NextDouble();
        while (world.Steps().ToArray() is { Length: > 0 } steps)
        {
            WorldStep[] soon = [.. steps.Where(step => step.What is not (Happening.TimeUp or Happening.UserTimeUp or Happening.Shutdown
                or Happening.VcpuCrashes or Happening.VcpuEnds))];
            WorldStep[] among = soon.Length > 0 && random.NextDouble() < 0.9 + (patience / 10) ? soon : steps;
            world = world.After(among[random.Next(among.Length)]);
            QuiesceInvariants.Check(world);
        }

        QuiesceInvariants.CheckEnd(world, commits);
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
        Assert.Equal([new QuiesceEffect.Release(1, 1)], Next(idle, new QuiesceEvent.Stood(1, 1)).Effects);
    }

    [Fact(DisplayName = "An abort says which vCPUs did not stop, and which one cannot")]
    public void Reasons()
    {
        QuiesceState state = Next(QuiesceState.Initial([0, 1, 2]), Ask(1)).State;
        state = Next(state, new QuiesceEvent.Stood(1, 1)).State;
        Assert.Equal("vCPU 0, 2 did not stop in time", Reason(Next(state, new QuiesceEvent.TimedOut(1))));
        Assert.Equal("vCPU 2 cannot be stopped: it crashed", Reason(Next(state, new QuiesceEvent.Declined(1, 2, "it crashed"))));
    }

    private static QuiesceTransition Next(QuiesceState state, QuiesceEvent happened) => QuiesceStateMachine.Next(state, happened);

    private static QuiesceEvent.Asked Ask(long id) => new(new QuiesceProtocol.Commit(id, id, [], []));

    private static string Reason(QuiesceTransition transition) => Assert.IsType<QuiesceProtocol.Aborted>(
        Assert.Single(transition.Effects.OfType<QuiesceEffect.Answer>()).Message).Reason;
}
