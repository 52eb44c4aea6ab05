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

    [Fact(DisplayName = "While too few exits come for a hot site it is looked for less and less often, and as often as before when they come again")]
    public async Task Idle()
    {
        // The timer is set when the first message has been read.
        await AdvanceAsync(TimeSpan.Zero);
        TimeSpan until = await SearchedAfterAsync();
        Assert.Equal(Settings.Shipped.DetectionInterval, until);
        while (until < Settings.Shipped.LongestDetectionInterval)
        {
            TimeSpan longer = 2 * until;
            await AdvanceAsync(until);
            until = longer < Settings.Shipped.LongestDetectionInterval ? longer : Settings.Shipped.LongestDetectionInterval;
        }

        await AdvanceAsync(until);
        Assert.Equal(Settings.Shipped.LongestDetectionInterval, await SearchedAfterAsync());
        Assert.Equal(Settings.Shipped.DetectionInterval, await SearchedAfterAsync());
    }

    /// <summary>Makes a site hot, and moves the time on in small steps until that is reported.</summary>
    private async Task<TimeSpan> SearchedAfterAsync()
    {
        TimeSpan step = TimeSpan.FromMilliseconds(1);
        for (int exit = 0; exit < Settings.Shipped.HotThreshold; exit++)
        {
            vcpus[0].Count(ExitKind.Privileged, Site);
        }

        for (TimeSpan after = step; after < 2 * Settings.Shipped.LongestDetectionInterval; after += step)
        {
            await AdvanceAsync(step);
            if (HasMessages)
            {
                _ = await ExpectMsgAsync<PlanningProtocol.HotSitesDetected>(Limit);
                return after;
            }
        }

        throw new Xunit.Sdk.XunitException("the site was not reported");
    }

    private Task DetectAsync() => AdvanceAsync(Settings.Shipped.LongestDetectionInterval);

    private async Task AdvanceAsync(TimeSpan time)
    {
        ((TestScheduler)Sys.Scheduler).Advance(time);
        _ = await aggregator.Ask<ActorIdentity>(new Identify(null), Limit);
    }
}
