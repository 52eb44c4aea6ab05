using System.Diagnostics;
using Akka.Configuration;
using Akka.Dispatch;

namespace Dmp.Actors.Timing;

/// <summary>
/// The threads of a dispatcher, which sleep soon after there is nothing to do any more. Those of Akka's own pools yield their processor a
/// hundred times before they do. Where a vCPU has just been interrupted for such a thread, Linux's fair scheduler may go on with the one
/// that yields, because it has slept before; the vCPU is late to stop, and the world stands until it has.
/// </summary>
/// <remarks>akka.hocon names <see cref="SleepingThreadsConfigurator"/>. What is due when they end is still run.</remarks>
public sealed class SleepingThreads : ExecutorService
{
    private readonly TimeSpan lookAround;
    private readonly object sync = new();

    // Under the lock.
    private readonly Queue<IRunnable> due = [];
    private int sleeping;
    private bool ended;

    // Written under the lock; read without it while looking around, where a late look only costs another turn.
    private volatile bool idle = true;

    /// <summary>Starts the threads.</summary>
    /// <param name="id">Name of the dispatcher, and of its threads.</param>
    /// <param name="count">How many, at least one.</param>
    /// <param name="lookAround">How long a thread that has nothing to do yields its processor before it sleeps.</param>
    public SleepingThreads(string id, int count, TimeSpan lookAround)
        : base(id)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(count, 1);
        this.lookAround = lookAround;
        for (int index = 0; index < count; index++)
        {
            new Thread(Work) { Name = $"{id}-{index}", IsBackground = true }.Start();
        }
    }

    /// <inheritdoc />
    /// <exception cref="RejectedExecutionException">They have ended.</exception>
    public override void Execute(IRunnable run)
    {
        lock (sync)
        {
            if (ended)
            {
                throw new RejectedExecutionException($"the threads of {Id} have ended");
            }

            due.Enqueue(run);
            idle = false;

            // Also when another looks around: what it has yielded its processor to may keep it for long.
            if (sleeping > 0)
            {
                Monitor.Pulse(sync);
            }
        }
    }

    /// <inheritdoc />
    public override void Shutdown()
    {
        lock (sync)
        {
            ended = true;
            Monitor.PulseAll(sync);
        }
    }

    private void Work()
    {
        while (Next() is { } run)
        {
            run.Run();
            LookAround();
        }
    }

    private void LookAround()
    {
        long start = Stopwatch.GetTimestamp();
        while (idle && Stopwatch.GetElapsedTime(start) < lookAround)
        {
            Thread.Yield();
        }
    }

    private IRunnable? Next()
    {
        lock (sync)
        {
            IRunnable? run;
            while (!due.TryDequeue(out run) && !ended)
            {
                sleeping++;
                Monitor.Wait(sync);
                sleeping--;
            }

            idle = due.Count == 0;
            return run;
        }
    }
}

/// <summary>Makes <see cref="SleepingThreads"/> of the settings of the dispatcher whose executor it is: <c>threads</c> and <c>look-around</c>.</summary>
/// <param name="config">Settings of the dispatcher.</param>
/// <param name="prerequisites">Of the actor system.</param>
public sealed class SleepingThreadsConfigurator(Config config, IDispatcherPrerequisites prerequisites)
    : ExecutorServiceConfigurator(config, prerequisites)
{
    /// <inheritdoc />
    public override ExecutorService Produce(string id) => new SleepingThreads(id, Config.GetInt("threads"), Config.GetTimeSpan("look-around"));
}
