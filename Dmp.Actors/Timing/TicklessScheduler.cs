using System.Collections.Concurrent;
using System.Diagnostics;
using Akka.Actor;
using Akka.Configuration;
using Akka.Dispatch;
using Akka.Event;

namespace Dmp.Actors.Timing;

/// <summary>
/// Akka's scheduler on the runtime's timers. Akka's own one wakes up a hundred times a second to look whether something is due, also when
/// the machine idles, and rounds times up to the next but one of these ticks; the runtime sleeps until the earliest timer.
/// </summary>
/// <remarks>
/// akka.hocon names it. What is due runs on the thread pool. When the actor system ends, what is outstanding is dropped.
/// </remarks>
public sealed class TicklessScheduler : SchedulerBase, IDisposable
{
    // A set: the values mean nothing. Entries leave it when they have run for the last time or are cancelled.
    private readonly ConcurrentDictionary<Entry, byte> outstanding = [];
    private volatile bool disposed;

    /// <summary>Creates the scheduler. Called by Akka.</summary>
    /// <param name="scheduler">The configuration; nothing in it matters here.</param>
    /// <param name="log">Receives the failures of what is run.</param>
    public TicklessScheduler(Config scheduler, ILoggingAdapter log)
        : base(scheduler, log)
    {
    }

    /// <inheritdoc />
    public override TimeSpan MonotonicClock => Stopwatch.GetElapsedTime(0);

    /// <inheritdoc />
    public override TimeSpan HighResMonotonicClock => MonotonicClock;

    /// <inheritdoc />
    protected override DateTimeOffset TimeNow => DateTimeOffset.Now;

    /// <inheritdoc />
    public void Dispose()
    {
        disposed = true;
        foreach (Entry entry in outstanding.Keys)
        {
            entry.Dispose();
        }
    }

    /// <inheritdoc />
    protected override void InternalScheduleTellOnce(TimeSpan delay, ICanTell receiver, object message, IActorRef sender, ICancelable cancelable) =>
        Add(delay, Timeout.InfiniteTimeSpan, () => receiver.Tell(message, sender), cancelable);

    /// <inheritdoc />
    protected override void InternalScheduleTellRepeatedly(
        TimeSpan initialDelay, TimeSpan interval, ICanTell receiver, object message, IActorRef sender, ICancelable cancelable) =>
        Add(initialDelay, interval, () => receiver.Tell(message, sender), cancelable);

    /// <inheritdoc />
    protected override void InternalScheduleOnce(TimeSpan delay, Action action, ICancelable cancelable) =>
        Add(delay, Timeout.InfiniteTimeSpan, action, cancelable);

    /// <inheritdoc />
    protected override void InternalScheduleOnce(TimeSpan delay, IRunnable action, ICancelable cancelable) =>
        Add(delay, Timeout.InfiniteTimeSpan, action.Run, cancelable);

    /// <inheritdoc />
    protected override void InternalScheduleRepeatedly(TimeSpan initialDelay, TimeSpan interval, Action action, ICancelable cancelable) =>
        Add(initialDelay, interval, action, cancelable);

    /// <inheritdoc />
    protected override void InternalScheduleRepeatedly(TimeSpan initialDelay, TimeSpan interval, IRunnable action, ICancelable cancelable) =>
        Add(initialDelay, interval, action.Run, cancelable);

    private void Add(TimeSpan delay, TimeSpan interval, Action action, ICancelable? cancelable)
    {
        var entry = new Entry(this, action, interval, cancelable);
        outstanding.TryAdd(entry, 0);
        entry.Begin(delay);

        // Looked at behind the entry's way into the set: either this sees the end, or the end sees the entry.
        Interlocked.MemoryBarrier();
        if (disposed)
        {
            entry.Dispose();
            throw new SchedulerException("the actor system has ended: nothing can be scheduled any more");
        }
    }

    private sealed class Entry : IDisposable
    {
        private readonly TicklessScheduler owner;
        private readonly Action action;
        private readonly TimeSpan interval;
        private readonly ICancelable? cancelable;

        // The runtime's queue holds the timer's state, which is this, while the timer is set; so nothing else must.
        private readonly Timer timer;
        private CancellationTokenRegistration cancellation;

        public Entry(TicklessScheduler owner, Action action, TimeSpan interval, ICancelable? cancelable)
        {
            this.owner = owner;
            this.action = action;
            this.interval = interval;
            this.cancelable = cancelable;
            timer = new Timer(static entry => ((Entry)entry!).Fire(), this, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
        }

        public void Begin(TimeSpan delay)
        {
            cancellation = cancelable?.Token.Register(static entry => ((Entry)entry!).Dispose(), this) ?? default;
            try
            {
                timer.Change(delay, interval);
            }
            catch (ObjectDisposedException)
            {
                // Cancelled before it began.
            }
        }

        public void Dispose()
        {
            timer.Dispose();
            owner.outstanding.TryRemove(this, out _);
        }

        private void Fire()
        {
            // A timer that was due when it was cancelled still comes here.
            if (cancelable?.IsCancellationRequested == true || owner.disposed)
            {
                return;
            }

            if (interval == Timeout.InfiniteTimeSpan)
            {
                cancellation.Dispose();
                Dispose();
            }

            try
            {
                action();
            }
            catch (Exception failure)
            {
                owner.Log.Error(failure, "what was scheduled failed");
            }
        }
    }
}
