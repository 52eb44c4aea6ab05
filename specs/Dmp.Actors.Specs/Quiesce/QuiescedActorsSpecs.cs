using Akka.Configuration;
using Akka.TestKit.Xunit2;

namespace Dmp.Actors.Specs.Quiesce;

/// <summary>The orders of events that the state machines go through, played by the actors themselves.</summary>
public sealed class QuiescedActorsSpecs : TestKit
{
    // Every actor runs on the thread that tells it something: when the telling is over, so is what came of it.
    private static readonly Config OnTellersThread = ConfigurationFactory
        .ParseString("dmp.control-dispatcher.type = \"Akka.TestKit.CallingThreadDispatcherConfigurator, Akka.TestKit\"")
        .WithFallback(Settings.InVirtualTime);

    public QuiescedActorsSpecs()
        : base(OnTellersThread)
    {
    }

    [Theory(DisplayName = "The actors send in every order of events what their state machines say, and nothing else")]
    [InlineData(3, 1, 0, 0, int.MaxValue)]
    [InlineData(3, 1, 1, 0, 500)]
    [InlineData(3, 2, 1, 0, 200)]
    [InlineData(3, 1, 1, 1, 200)]
    [InlineData(2, 2, 1, 1, 200)]
    public void Every_order(int vcpus, int commits, int failures, int pauses, int most)
    {
        var limits = new WorldLimits(vcpus) { Commits = commits, Failures = failures, Pauses = pauses };
        int played = 0;
        foreach (WorldStep[] order in Orders(QuiesceWorld.Of(limits)).Take(most))
        {
            QuiesceStage.Play(Sys, QuiesceWorld.Of(limits), order);
            played++;
        }

        Assert.InRange(played, 10, int.MaxValue);
    }

    /// <summary>Orders of events from the beginning to an end, until every event has happened in every world that can be.</summary>
    private static IEnumerable<WorldStep[]> Orders(QuiesceWorld beginning)
    {
        // The same random orders every time, so that what fails can be looked at.
        const int Seed = 4711;
        var random = new Random(Seed);
        var tried = new HashSet<(string World, Happening What, string Vcpu)>();
        var met = new HashSet<string>();
        var ways = new Stack<(QuiesceWorld World, WorldStep[] Way)>();
        Meet(beginning, []);
        while (ways.TryPeek(out (QuiesceWorld World, WorldStep[] Way) open))
        {
            if (Untried(open.World).Length == 0)
            {
                _ = ways.Pop();
                continue;
            }

            List<WorldStep> order = [.. open.Way];
            QuiesceWorld world = open.World;
            while (world.Steps().ToArray() is { Length: > 0 } steps)
            {
                WorldStep[] among = Untried(world) is { Length: > 0 } untried ? untried : steps;
                WorldStep step = among[random.Next(among.Length)];
                _ = tried.Add(NameOf(world, step));
                order.Add(step);
                world = world.After(step);
                Meet(world, order);
            }

            yield return [.. order];
        }

        void Meet(QuiesceWorld world, IEnumerable<WorldStep> way)
        {
            if (met.Add(world.Key))
            {
                ways.Push((world, [.. way]));
            }
        }

        WorldStep[] Untried(QuiesceWorld world) => [.. world.Steps().Where(step => !tried.Contains(NameOf(world, step)))];

        // vCPUs with nothing but their numbers to tell them apart are the same.
        static (string, Happening, string) NameOf(QuiesceWorld world, WorldStep step) =>
            (world.Key, step.What, step.Vcpu < 0 ? "" : world.KeyOf(step.Vcpu));
    }
}
