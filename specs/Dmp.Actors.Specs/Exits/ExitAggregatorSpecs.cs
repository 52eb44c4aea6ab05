using System.Collections.Concurrent;
using Akka.Actor;
using Akka.TestKit;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Exits;
using Dmp.Actors.Planning;
using Dmp.Kvm.Cpu;

namespace Dmp.Actors.Specs.Exits;

/// <summary>What the aggregator tells the planner of, and when.</summary>
public sealed class ExitAggregatorSpecs : TestKit
{
    private const ulong Site = 0x1000;
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);

    private readonly FakeVcpu[] vcpus;
    private readonly IActorRef aggregator;

    public ExitAggregatorSpecs()
        : base(Settings.InVirtualTime)
    {
        var events = new ConcurrentQueue<string>();
        vcpus = [new FakeVcpu(0, events), new FakeVcpu(1, events)];
        aggregator = Sys.ActorOf(
            ExitAggregator.Props(new ExitSampler(vcpus, TimeProvider.System), new PhaseLedger(), Settings.Shipped));
        aggregator.Tell(new ExitProtocol.ReportHotSites(TestActor));
    }

    [Fact(DisplayName = "A site that gets hot slowly, a few exits on each vCPU at a time, is reported like one that gets hot at once")]
    public async Task Slowly()
    {
        const int AtATime = 3;
        for (int exits = 0; exits < 2 * Settings.Shipped.HotThreshold; exits += AtATime * vcpus.Length)
        {
            foreach (FakeVcpu vcpu in vcpus)
            {
                for (int exit = 0; exit < AtATime; exit++)
                {
                    vcpu.Count(ExitKind.Privileged, Site);
                }
            }

            await DetectAsync();
        }

        HotSite hot = Assert.Single((await ExpectMsgAsync<PlanningProtocol.HotSitesDetected>(Limit)).Sites);
        Assert.Equal((Site, ExitKind.Privileged), (hot.Rip, hot.Kind));
    }

    [Fact(DisplayName = "A site is not reported before it is hot")]
    public async Task Cold()
    {
        for (int exit = 0; exit < Settings.Shipped.HotThreshold - 1; exit++)
        {
            vcpus[0].Count(ExitKind.Privileged, Site);
        }

        await DetectAsync();
        Assert.False(HasMessages);
    }

    private async Task DetectAsync()
    {
        ((TestScheduler)Sys.Scheduler).Advance(Settings.Shipped.DetectionInterval);
        _ = await aggregator.Ask<ActorIdentity>(new Identify(null), Limit);
    }
}
