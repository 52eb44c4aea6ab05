using System.Collections.Immutable;
using Akka.Actor;
using Akka.Event;
using static Dmp.Actors.Journal.JournalProtocol;

namespace Dmp.Actors.Journal;

/// <summary>
/// Stands for the patch journal of one kernel, whatever state that is in: opens it beside the guest's start, passes requests to
/// it, and answers for it when it cannot be used. The guest runs on without it; only no further patch is applied.
/// </summary>
/// <remarks>
/// Opening for the first time: requests wait, for no longer than dmp.journal.open-timeout. Available: requests go to
/// <see cref="PatchJournal"/>; one that takes longer than dmp.journal.answer-timeout, or any failure of the database, ends the
/// session. Unavailable: requests fail at once; the journal is opened again after a while that doubles, unless somebody has to
/// repair it first. Closed: requests fail.
/// </remarks>
public sealed class JournalGuardian : ReceiveActor, IWithTimers
{
    private const string OpenTimer = "open";
    private const string RetryTimer = "retry";
    private const string SettleTimer = "settle";

    // Counts on over restarts, so that a late message of the predecessor's session means nothing to its successor.
    private static long sessions;

    private readonly ILoggingAdapter log = Context.GetLogger();
    private readonly JournalConnection connection;
    private readonly string kernelId;
    private readonly ControlSettings settings;
    private readonly SortedDictionary<long, Waiting> waiting = [];
    private readonly List<IRequest> owed = [];
    private readonly HashSet<long> openTransactions = [];

    private Phase phase = Phase.Opening;
    private long session;
    private Task<JournalSession>? opening;
    private JournalSession? current;
    private IActorRef journal = ActorRefs.Nobody;
    private Task closing = Task.CompletedTask;
    private long lastNumber;
    private int failures;
    private string reason = string.Empty;
    private string logged = string.Empty;
    private string told = string.Empty;

    /// <summary>Creates the actor; use <see cref="Props"/>.</summary>
    /// <param name="connection">Where the journal is.</param>
    /// <param name="kernelId">The kernel.</param>
    /// <param name="settings">Times and limits.</param>
    public JournalGuardian(JournalConnection connection, string kernelId, ControlSettings settings)
    {
        this.connection = connection;
        this.kernelId = kernelId;
        this.settings = settings;

        Receive<Close>(OnClose);
        Receive<IRequest>(OnRequest);
        Receive<Opened>(OnOpened);
        Receive<OpenFailed>(failed => Fail(failed.Session, () => JournalFailure.Of("open", connection, failed.Cause)));
        Receive<PatchJournal.Recovered>(OnRecovered);
        Receive<PatchJournal.Answered>(OnAnswered);
        Receive<PatchJournal.Broke>(broke => Fail(
            broke.Session,
            () => JournalFailure.Of(phase == Phase.Opening ? "open" : broke.Attempted, connection, broke.Cause)));
        Receive<JournalSession.PluginFailed>(OnPluginFailed);
        Receive<TooSlow>(slow => Fail(slow.Session, () => JournalFailure.TooSlow(slow.Attempted, connection, slow.Limit)));
        Receive<Retry>(_ => Open());
        Receive<Settled>(OnSettled);
        Receive<Released>(released => released.For?.Tell(new Closed(released.RequestId)));
    }

    private enum Phase
    {
        Opening,
        Available,
        Unavailable,
        Closed,
    }

    /// <inheritdoc/>
    public ITimerScheduler Timers { get; set; } = null!;

    /// <summary>How to create the journal of a kernel.</summary>
    /// <param name="connection">Where it is kept.</param>
    /// <param name="kernelId">The kernel's build id or hash: its patches are its own.</param>
    /// <param name="settings">Times and limits.</param>
    public static Props Props(JournalConnection connection, string kernelId, ControlSettings settings) =>
        Akka.Actor.Props.Create(() => new JournalGuardian(connection, kernelId, settings)).WithDispatcher(ControlSettings.Dispatcher);

    /// <inheritdoc/>
    protected override void PreStart() => Open();

    /// <inheritdoc/>
    protected override void PostStop()
    {
        session = 0;
        Release();
    }

    /// <inheritdoc/>
    protected override void PreRestart(Exception reason, object message)
    {
        foreach (long number in waiting.Keys.ToArray())
        {
            AnswerFailed(number, "the journal's guardian failed and was restarted");
        }

        base.PreRestart(reason, message);
    }

    private void Open()
    {
        phase = Phase.Opening;
        long number = session = Interlocked.Increment(ref sessions);
        TimeSpan limit = settings.Journal.OpenTimeout;
        Timers.StartSingleTimer(OpenTimer, new TooSlow(number, "open", limit), limit);
        opening = OpenAfter(closing);
        opening.PipeTo(Self, success: opened => new Opened(number, opened), failure: cause => new OpenFailed(number, cause));
    }

    private async Task<JournalSession> OpenAfter(Task previous)
    {
        // Its lock would be in the way.
        await previous.ConfigureAwait(false);
        return await JournalSession.OpenAsync(connection, kernelId, settings).ConfigureAwait(false);
    }

    private void OnOpened(Opened opened)
    {
        if (opened.Session != session)
        {
            // Too late: it was released when it was given up.
            return;
        }

        opening = null;
        current = opened.Journal;
        journal = current.Start(
            PatchJournal.Props(kernelId, Self, session, openTransactions.ToImmutableHashSet(), settings.Journal.SnapshotEvery),
            Self,
            session);
    }

    private void OnPluginFailed(JournalSession.PluginFailed failed)
    {
        // Once the journal is open a failure comes as the answer to what was attempted, if it matters at all.
        if (phase == Phase.Opening)
        {
            Fail(failed.Session, () => JournalFailure.Of("open", connection, failed.Cause));
        }
    }

    private void OnRecovered(PatchJournal.Recovered recovered)
    {
        if (recovered.Session != session)
        {
            return;
        }

        Timers.Cancel(OpenTimer);
        phase = Phase.Available;
        reason = string.Empty;
        told = string.Empty;
        if (logged.Length > 0)
        {
            // A full disk may take a few more events each time it is tried: that is still the same outage.
            Timers.StartSingleTimer(SettleTimer, new Settled(session), RetryDelay());
        }

        // First what happened before: it may resolve what a new request asks about.
        IRequest[] late = [.. owed];
        owed.Clear();
        foreach (IRequest request in late)
        {
            Send(Enqueue(request, ActorRefs.Nobody, isOwed: true));
        }

        foreach (long number in waiting.Where(entry => !entry.Value.IsOwed).Select(entry => entry.Key).ToArray())
        {
            Send(number);
        }

        Context.Parent.Tell(new BecameAvailable(recovered.State));
    }

    private void OnSettled(Settled settled)
    {
        if (settled.Session == session)
        {
            failures = 0;
            logged = string.Empty;
            log.Warning("the patch journal ({0}) can be used again", connection.Description);
        }
    }

    private void OnRequest(IRequest request)
    {
        switch (phase)
        {
            case Phase.Opening when reason.Length == 0:
                Enqueue(request, Sender, isOwed: false);
                break;
            case Phase.Available:
                Send(Enqueue(request, Sender, isOwed: false));
                break;
            default:
                Owe(request);
                Sender.Tell(new JournalFailed(request.RequestId, reason));
                break;
        }
    }

    private long Enqueue(IRequest request, IActorRef from, bool isOwed)
    {
        waiting.Add(++lastNumber, new Waiting(request, from, isOwed));
        return lastNumber;
    }

    private void Send(long number)
    {
        TimeSpan limit = settings.Journal.AnswerTimeout;
        Timers.StartSingleTimer(number, new TooSlow(session, "write to", limit), limit);
        journal.Tell(new PatchJournal.Asked(number, waiting[number].Request), Self);
    }

    private void OnAnswered(PatchJournal.Answered answered)
    {
        if (answered.Session != session || !waiting.Remove(answered.Number, out Waiting? answeredRequest))
        {
            return;
        }

        Timers.Cancel(answered.Number);
        switch (answered.Answer)
        {
            case Intended intended:
                openTransactions.Add(intended.Transaction);
                break;
            case Completed { Open.IsEmpty: true } completed:
                openTransactions.Remove(completed.Transaction);
                break;
        }

        answeredRequest.From.Tell(answered.Answer);
    }

    private void Fail(long failed, Func<JournalFailure> explain)
    {
        if (failed != session || phase is Phase.Unavailable or Phase.Closed)
        {
            return;
        }

        JournalFailure failure = explain();
        session = 0;
        phase = Phase.Unavailable;
        reason = failure.Line;
        Timers.Cancel(OpenTimer);
        Timers.Cancel(SettleTimer);
        Release();
        foreach (long number in waiting.Keys.ToArray())
        {
            Owe(waiting[number].Request);
            AnswerFailed(number, reason);
        }

        if (logged.Length == 0)
        {
            // Once for an outage, however often it is tried again, and whatever each attempt finds.
            log.Warning("{0}. The guest runs on; no further code is patched", reason);
            logged = reason;
        }

        if (reason != told)
        {
            told = reason;
            Context.Parent.Tell(new BecameUnavailable(reason));
        }

        if (failure.MayPass)
        {
            Timers.StartSingleTimer(RetryTimer, Retry.Instance, RetryDelay());
            failures++;
        }
    }

    private TimeSpan RetryDelay()
    {
        // Beyond this many doublings any sensible limit is long reached.
        const int MostDoublings = 20;
        double factor = Math.Pow(2, Math.Min(failures, MostDoublings));
        return TimeSpan.FromTicks((long)Math.Min(settings.Journal.FirstRetry.Ticks * factor, settings.Journal.LongestRetry.Ticks));
    }

    /// <summary>What is about things that have happened already is stored when the journal is there again.</summary>
    private void Owe(IRequest request)
    {
        if (phase != Phase.Closed && request is Complete or Record)
        {
            owed.Add(request);
        }
    }

    private void AnswerFailed(long number, string why)
    {
        Timers.Cancel(number);
        if (waiting.Remove(number, out Waiting? request))
        {
            request.From.Tell(new JournalFailed(request.Request.RequestId, why));
        }
    }

    private void OnClose(Close close)
    {
        if (phase != Phase.Closed)
        {
            phase = Phase.Closed;
            session = 0;
            reason = "the patch journal is closed";
            Timers.CancelAll();
            foreach (long number in waiting.Keys.ToArray())
            {
                AnswerFailed(number, reason);
            }

            Release();
        }

        IActorRef asker = Sender;
        closing.PipeTo(
            Self,
            success: () => new Released(close.RequestId, asker),
            failure: _ => new Released(close.RequestId, asker));
    }

    /// <summary>Gives the session back, beside the actor; <see cref="closing"/> tells when it is done.</summary>
    private void Release()
    {
        journal = ActorRefs.Nobody;
        if (opening is { } pending)
        {
            opening = null;
            closing = Task.WhenAll(closing, DisposeWhenOpened(pending));
        }

        if (current is { } ended)
        {
            current = null;
            closing = Task.WhenAll(closing, ended.DisposeAsync().AsTask());
        }
    }

    private static async Task DisposeWhenOpened(Task<JournalSession> pending)
    {
        try
        {
            JournalSession late = await pending.ConfigureAwait(false);
            await late.DisposeAsync().ConfigureAwait(false);
        }
        catch (Exception)
        {
            // It did not open: there is nothing to give back, and why has been said or nobody wants to know any more.
        }
    }

    private sealed record Waiting(IRequest Request, IActorRef From, bool IsOwed);

    private sealed record Opened(long Session, JournalSession Journal);

    private sealed record OpenFailed(long Session, Exception Cause);

    private sealed record TooSlow(long Session, string Attempted, TimeSpan Limit);

    private sealed record Settled(long Session);

    private sealed record Released(long RequestId, IActorRef? For);

    private sealed record Retry
    {
        public static readonly Retry Instance = new();
    }
}
