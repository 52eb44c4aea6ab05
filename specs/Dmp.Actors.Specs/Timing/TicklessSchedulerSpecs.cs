using System.Diagnostics;
using Akka.Actor;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Timing;

namespace Dmp.Actors.Specs.Timing;

/// <summary>
/// The scheduler that ships, in real time: what comes, in which order, and that it does not come too early. How late it comes is the
/// machine's affair.
/// </summary>
public sealed class TicklessSchedulerSpecs : TestKit
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan Soon = TimeSpan.FromMilliseconds(5);

    // Longer than this process ever stands still between two statements.
    private static readonly TimeSpan Later = TimeSpan.FromSeconds(1);

    public TicklessSchedulerSpecs()
        : base(Settings.Shipped.Configuration)
    {
    }

    private IScheduler Scheduler => Sys.Scheduler;

    [Fact(DisplayName = "The shipped settings make it the scheduler of the actor system")]
    public void Shipped() => Assert.IsType<TicklessScheduler>(Scheduler);

    [Fact(DisplayName = "A message comes once, not before its time, and from the sender that was named")]
    public async Task Once()
    {
        TimeSpan delay = TimeSpan.FromMilliseconds(50);
        long start = Stopwatch.GetTimestamp();
        Scheduler.ScheduleTellOnce(delay, TestActor, "once", TestActor);
        await ExpectMsgAsync("once", Limit);
        Assert.True(Stopwatch.GetElapsedTime(start) >= delay - TimeSpan.FromMilliseconds(1));
        Assert.Equal(TestActor, LastSender);
        await NothingMoreAsync();
    }

    [Fact(DisplayName = "Messages of different times come in the order of their times")]
    public async Task In_order()
    {
        Scheduler.ScheduleTellOnce(TimeSpan.FromMilliseconds(400), TestActor, "late", ActorRefs.NoSender);
        Scheduler.ScheduleTellOnce(Soon, TestActor, "early", ActorRefs.NoSender);
        await ExpectMsgAsync("early", Limit);
        await ExpectMsgAsync("late", Limit);
    }

    [Fact(DisplayName = "A repeated message comes again and again until it is cancelled, also when garbage is collected meanwhile")]
    public async Task Repeated()
    {
        using var cancelable = new Cancelable(Scheduler);
        Scheduler.ScheduleTellRepeatedly(TimeSpan.Zero, Soon, TestActor, "again", ActorRefs.NoSender, cancelable);
        for (int times = 0; times < 10; times++)
        {
            await ExpectMsgAsync("again", Limit);
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }

        cancelable.Cancel();

        // Collecting garbage took longer than the interval: several may wait, or be on their way.
        Scheduler.ScheduleTellOnce(20 * Soon, TestActor, "settled", ActorRefs.NoSender);
        string message;
        do
        {
            message = await ExpectMsgAsync<string>(Limit);
        }
        while (message == "again");
        Assert.Equal("settled", message);
        await NothingMoreAsync();
    }

    [Fact(DisplayName = "What is cancelled before its time does not come, and what is cancelled before it is scheduled neither")]
    public async Task Cancelled()
    {
        using var before = new Cancelable(Scheduler);
        before.Cancel();
        Scheduler.ScheduleTellOnce(Soon, TestActor, "cancelled before", ActorRefs.NoSender, before);
        using var after = new Cancelable(Scheduler);
        Scheduler.ScheduleTellOnce(Later, TestActor, "cancelled after", ActorRefs.NoSender, after);
        after.Cancel();
        await NothingMoreAsync(Later);
    }

    [Fact(DisplayName = "An action that fails is logged, and what is repeated goes on")]
    public async Task Failing()
    {
        int times = 0;
        using var cancelable = new Cancelable(Scheduler);
        Scheduler.Advanced.ScheduleRepeatedly(
            TimeSpan.Zero,
            Soon,
            () =>
            {
                if (Interlocked.Increment(ref times) == 1)
                {
                    throw new InvalidOperationException("the first time");
                }

                TestActor.Tell("went on");
            },
            cancelable);
        Assert.Equal("went on", await ExpectMsgAsync<string>(Limit));
    }

    [Fact(DisplayName = "When the actor system has ended nothing comes any more, and nothing can be scheduled")]
    public async Task Ended()
    {
        using var system = ActorSystem.Create("ended", Settings.Shipped.Configuration);
        IScheduler scheduler = system.Scheduler;
        int times = 0;
        scheduler.Advanced.ScheduleRepeatedly(Soon, Soon, () => Interlocked.Increment(ref times));
        await AwaitConditionAsync(() => Task.FromResult(Volatile.Read(ref times) > 0), Limit);
        await system.Terminate();
        _ = Assert.Throws<SchedulerException>(() => scheduler.Advanced.ScheduleOnce(Soon, () => Interlocked.Increment(ref times)));
        await Task.Delay(10 * Soon);
        int then = Volatile.Read(ref times);
        await Task.Delay(10 * Soon);
        Assert.Equal(then, Volatile.Read(ref times));
    }

    /// <summary>Waits for a message that was scheduled after all others.</summary>
    private async Task NothingMoreAsync(TimeSpan since = default)
    {
        Scheduler.ScheduleTellOnce(since + (20 * Soon), TestActor, "over", ActorRefs.NoSender);
        await ExpectMsgAsync("over", Limit);
    }
}
