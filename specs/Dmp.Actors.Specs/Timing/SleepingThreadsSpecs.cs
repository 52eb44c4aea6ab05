using System.Collections.Concurrent;
using Akka.Actor;
using Akka.Dispatch;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Timing;

namespace Dmp.Actors.Specs.Timing;

/// <summary>The threads of the dispatcher that ships.</summary>
public sealed class SleepingThreadsSpecs : TestKit
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);

    public SleepingThreadsSpecs()
        : base(Settings.Shipped.Configuration)
    {
    }

    [Fact(DisplayName = "The shipped settings make them the threads of control actors")]
    public void Shipped()
    {
        IActorRef actor = Sys.ActorOf(Props.Create<SayerOfThread>().WithDispatcher(ControlSettings.Dispatcher));
        actor.Tell("which thread?", TestActor);
        Assert.StartsWith(ControlSettings.Dispatcher, ExpectMsg<string>(Limit), StringComparison.Ordinal);
    }

    [Theory(DisplayName = "Everything that several threads give them is run once, also when they fall asleep between")]
    [InlineData(1, 0)]
    [InlineData(2, 0)]
    [InlineData(2, 20)]
    [InlineData(3, 1000)]
    public void Nothing_lost(int threads, int lookAroundMicroseconds)
    {
        const int Givers = 3;
        const int Each = 2000;
        var pool = new SleepingThreads("spec", threads, TimeSpan.FromMicroseconds(lookAroundMicroseconds));
        int[] ran = new int[Givers * Each];
        using var all = new CountdownEvent(ran.Length);
        _ = Parallel.For(0, Givers, giver =>
        {
            var random = new Random(giver);
            for (int number = giver * Each; number < (giver + 1) * Each; number++)
            {
                int mine = number;
                pool.Execute(new Run(() =>
                {
                    _ = Interlocked.Increment(ref ran[mine]);
                    _ = all.Signal();
                }));
                if (random.Next(50) == 0)
                {
                    Thread.Sleep(1);
                }
            }
        });
        Assert.True(all.Wait(Limit));
        pool.Shutdown();
        Assert.All(ran, times => Assert.Equal(1, times));
    }

    [Fact(DisplayName = "One thread runs what it is given in order")]
    public void In_order()
    {
        var pool = new SleepingThreads("spec", 1, TimeSpan.Zero);
        var ran = new ConcurrentQueue<int>();
        using var all = new CountdownEvent(100);
        foreach (int number in Enumerable.Range(0, all.InitialCount))
        {
            pool.Execute(new Run(() =>
            {
                ran.Enqueue(number);
                _ = all.Signal();
            }));
        }

        Assert.True(all.Wait(Limit));
        pool.Shutdown();
        Assert.Equal(Enumerable.Range(0, all.InitialCount), ran);
    }

    [Fact(DisplayName = "What takes long on one thread does not hold up another")]
    public void Two_at_once()
    {
        var pool = new SleepingThreads("spec", 2, TimeSpan.Zero);
        using var second = new ManualResetEventSlim();
        using var first = new ManualResetEventSlim();
        pool.Execute(new Run(() =>
        {
            if (second.Wait(Limit))
            {
                first.Set();
            }
        }));
        pool.Execute(new Run(second.Set));
        Assert.True(first.Wait(Limit));
        pool.Shutdown();
    }

    [Fact(DisplayName = "At the end what is due is still run, and nothing more is taken")]
    public void Ended()
    {
        var pool = new SleepingThreads("spec", 1, TimeSpan.Zero);
        using var goOn = new ManualResetEventSlim();
        using var last = new ManualResetEventSlim();
        pool.Execute(new Run(() => Assert.True(goOn.Wait(Limit))));
        pool.Execute(new Run(last.Set));
        pool.Shutdown();
        _ = Assert.Throws<RejectedExecutionException>(() => pool.Execute(new Run(() => { })));
        goOn.Set();
        Assert.True(last.Wait(Limit));
    }

    private sealed class Run(Action action) : IRunnable
    {
        void IRunnable.Run() => action();

        public void Execute() => action();
    }

    private sealed class SayerOfThread : ReceiveActor
    {
        public SayerOfThread() => ReceiveAny(_ => Sender.Tell(Thread.CurrentThread.Name ?? ""));
    }
}
