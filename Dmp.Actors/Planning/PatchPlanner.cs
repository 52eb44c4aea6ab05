using System.Collections.Immutable;
using Akka.Actor;
using Akka.Event;
using Dmp.Actors.Exits;
using Dmp.Actors.Journal;
using Dmp.Actors.Quiesce;
using Dmp.Kvm.Patching;
using static Dmp.Actors.Planning.PlanningProtocol;

namespace Dmp.Actors.Planning;

/// <summary>
/// Turns hot sites into patches, one transaction at a time: plan, prepare the implants, have the intent journaled, have the world stopped
/// and the code written, have the result journaled. Hot sites that come meanwhile wait for the next transaction.
/// </summary>
/// <remarks>
/// A transaction of many patches stops the world several times, for a part each time, and lets the guest run in between: patches do not
/// depend on each other, and what a guest notices is how long it stands, not how often.
///
/// Without a durable intent nothing is applied: while the journal is unavailable, hot sites are dropped, and come back as hot as they are
/// when it is available again; so they are for a while after a transaction that was given up, longer each time, because a world that does not
/// stop in time has better things to do. What must survive a restart of this actor lies in the <see cref="PatchBook"/> that it is lent.
/// </remarks>
public sealed class PatchPlanner : ReceiveActor, IWithTimers
{
    private const string PatchingOff = "patching was switched off";
    private const string RunEnds = "the run ends";

    private readonly ILoggingAdapter log = Context.GetLogger();
    private readonly IPatchEngine engine;
    private readonly PatchBook book;
    private readonly PlannerPeers peers;
    private readonly ControlSettings settings;
    private readonly PlannerMemory memory;
    private readonly List<PatchNotice> notices = [];

    // What came while a transaction was under way. A site that goes on to be hot is there once: looking at it takes its time each time.
    private readonly OrderedDictionary<ulong, HotSite> hot = [];
    private readonly Queue<(SetPatching Request, IActorRef From)> switches = new();

    private static long lastRequestId;
    private bool journalAvailable;
    private TimeSpan rest;
    private bool resting;
    private TimeSpan at;
    private (Stop Request, IActorRef From)? stop;

    /// <summary>Creates the actor; use <see cref="Props"/>.</summary>
    /// <param name="engine">Plans and prepares.</param>
    /// <param name="book">What is known; outlives the actor.</param>
    /// <param name="peers">Whom it works with.</param>
    /// <param name="settings">Times and limits.</param>
    /// <param name="memory">The transaction under way; outlives the actor.</param>
    public PatchPlanner(IPatchEngine engine, PatchBook book, PlannerPeers peers, ControlSettings settings, PlannerMemory memory)
    {
        this.engine = engine;
        this.book = book;
        this.peers = peers;
        this.settings = settings;
        this.memory = memory;
        Receive<HotSitesDetected>(OnHotSites);
        Receive<NoticeTick>(_ => TakeNotices());
        Receive<ChurnTick>(_ => Churn());
        Receive<RestOver>(_ => resting = false);
        Receive<NextPart>(_ => CommitNextPart());
        Receive<SetPatching>(set =>
        {
            if (stop is not null)
            {
                Sender.Tell(new Refused(set.RequestId, RunEnds));
                return;
            }

            switches.Enqueue((set, Sender));
            Begin();
        });
        Receive<Stop>(request =>
        {
            stop = (request, Sender);
            RefuseSwitches(RunEnds);
            AnswerStopIfIdle();
        });

        Receive<JournalProtocol.BecameAvailable>(OnAvailable);
        Receive<JournalProtocol.BecameUnavailable>(OnUnavailable);
        Receive<JournalProtocol.Intended>(OnIntended);
        Receive<JournalProtocol.JournalFailed>(OnJournalFailed);
        Receive<JournalProtocol.State>(state => OnAvailable(new JournalProtocol.BecameAvailable(state.Journal)));
        Receive<JournalProtocol.Completed>(_ => { });
        Receive<JournalProtocol.Recorded>(_ => { });

        Receive<QuiesceProtocol.Committed>(OnCommitted);
        Receive<QuiesceProtocol.Aborted>(OnAborted);
    }

    /// <inheritdoc />
    public ITimerScheduler Timers { get; set; } = null!;

    /// <summary>How to create the planner.</summary>
    /// <param name="engine">Plans and prepares.</param>
    /// <param name="book">What is known; outlives the actor.</param>
    /// <param name="peers">Whom it works with.</param>
    /// <param name="settings">Times and limits.</param>
    public static Props Props(IPatchEngine engine, PatchBook book, PlannerPeers peers, ControlSettings settings)
    {
        var memory = new PlannerMemory();
        return Akka.Actor.Props.Create(() => new PatchPlanner(engine, book, peers, settings, memory))
            .WithDispatcher(ControlSettings.Dispatcher);
    }

    /// <inheritdoc />
    protected override void PreStart()
    {
        Timers.StartPeriodicTimer(nameof(NoticeTick), NoticeTick.Instance, settings.NoticeInterval);
        if (settings.ChurnInterval > TimeSpan.Zero)
        {
            Timers.StartPeriodicTimer(nameof(ChurnTick), ChurnTick.Instance, settings.ChurnInterval);
        }
    }

    /// <inheritdoc />
    protected override void PostRestart(Exception reason)
    {
        base.PostRestart(reason);

        // The journal told its state to the predecessor. Answers to the predecessor's transaction find this actor, which completes it.
        peers.Journal.Tell(new JournalProtocol.GetState(NextId()));

        // A restart cancels the timers.
        CommitNextPart();
    }

    /// <inheritdoc />
    protected override void PreRestart(Exception reason, object message)
    {
        RefuseSwitches("the planner failed");
        if (stop is { } waiting)
        {
            Self.Tell(waiting.Request, waiting.From);
        }

        base.PreRestart(reason, message);
    }

    private static long NextId() => Interlocked.Increment(ref lastRequestId);

    private void OnAvailable(JournalProtocol.BecameAvailable available)
    {
        bool first = !journalAvailable;
        journalAvailable = true;

        // Also when the guest did not wait for it: what the user switched off is not to be patched by a journal that came late.
        book.Disable([.. available.Journal.Disabled.Select(offset => unchecked(engine.KernelBase + (ulong)offset))]);
        if (first && !book.ReplayStarted)
        {
            book.ReplayStarted = true;
            try
            {
                if (peers.Replay)
                {
                    ReplayPlan plan = available.Journal.Replayable(engine.Templates);
                    engine.Replay([.. plan.Patches.Select(patch => patch.ToPlan(engine.KernelBase))]);
                }
            }
            finally
            {
                // Also when that fails: it is not tried again, and the guest must not wait for it.
                Context.Parent.Tell(new Ready());
            }
        }

        // Also when it comes too late for a replay.
        book.Disable([.. available.Journal.Disabled.Select(offset => unchecked(engine.KernelBase + (ulong)offset))]);
        Begin();
    }

    private void OnUnavailable(JournalProtocol.BecameUnavailable unavailable)
    {
        journalAvailable = false;
        if (!book.ReplayStarted)
        {
            book.ReplayStarted = true;
            Context.Parent.Tell(new Ready());
        }
    }

    private void OnHotSites(HotSitesDetected detected)
    {
        at = detected.At;
        foreach (HotSite site in detected.Sites)
        {
            hot[site.Rip] = site;
        }

        Begin();
    }

    /// <summary>Begins the next transaction, if none is under way and there is something to do.</summary>
    private void Begin()
    {
        if (memory.Current is not null || stop is not null)
        {
            return;
        }

        while (switches.TryPeek(out (SetPatching Request, IActorRef From) set))
        {
            // Stays in the queue while it may fail: who asked is answered in any case.
            Switch(set.Request, set.From);
            _ = switches.Dequeue();
            if (memory.Current is not null)
            {
                return;
            }
        }

        if (hot.Count == 0)
        {
            return;
        }

        if (!journalAvailable || !memory.Enabled || resting)
        {
            hot.Clear();
            return;
        }

        TakeNotices();
        List<(PreparedPatch Patch, long Exits)> prepared = [];
        List<JournalEvent.Fact> facts = [];
        foreach (HotSite site in hot.Values)
        {
            Consider(site, prepared, facts);
        }

        hot.Clear();
        if (facts.Count > 0)
        {
            peers.Journal.Tell(new JournalProtocol.Record(NextId(), [.. facts]));
        }

        Intend(prepared, answer: null);
    }

    private void Consider(HotSite site, List<(PreparedPatch Patch, long Exits)> prepared, List<JournalEvent.Fact> facts)
    {
        bool covered = prepared.Exists(other => site.Rip >= other.Patch.Plan.Window && site.Rip < other.Patch.Plan.End);
        if (covered || !book.WantsPlan(site, (address, bytes) => engine.HasBytes(address, bytes.AsSpan()), prepared.Count, out _))
        {
            return;
        }

        switch (engine.Plan(site.Rip, site.Kind))
        {
            case PlanResult.Refused refused:
                Refuse(site, refused.Bytes, refused.Reason, facts);
                break;
            case PlanResult.Planned { Plan: var plan } when book.IsDisabled(plan):
                book.SwitchOff(site.Rip);
                break;
            case PlanResult.Planned { Plan: var plan }:
                if (engine.Prepare(plan, out PreparationFailure? failure) is { } patch)
                {
                    prepared.Add((patch, site.Exits));
                }
                else if (failure is { IsFinal: true })
                {
                    Refuse(site, [.. plan.Original.Skip((int)(site.Rip - plan.Window))], failure.Reason, facts);
                }
                else
                {
                    book.Postpone(site.Rip, failure?.Reason ?? "");
                }

                break;
        }
    }

    private void Refuse(HotSite site, ImmutableArray<byte> bytes, string reason, List<JournalEvent.Fact> facts)
    {
        book.Refuse(site.Rip, bytes, reason);
        facts.Add(new JournalEvent.PatchRefused(Offset(site.Rip), bytes, reason, site.Kind)
        {
            Symbol = Symbol(site.Rip),
            KernelBase = engine.KernelBase,
        });
    }

    private void Intend(List<(PreparedPatch Patch, long Exits)> prepared, (SetPatching Request, IActorRef From)? answer)
    {
        if (prepared.Count == 0)
        {
            return;
        }

        long id = NextId();
        memory.Current = new PlannerTransaction(
            id,
            [.. prepared.Select(entry => entry.Patch)],
            [],
            // One that only comes back has long been observed.
            [.. prepared.Where(entry => entry.Exits > 0).Select(entry =>
                (JournalEvent.Fact)new JournalEvent.PatchObserved(Offset(entry.Patch.Plan.Window), entry.Exits, at))],
            answer);
        peers.Journal.Tell(new JournalProtocol.Intend(
            id, [.. prepared.Select(entry => Journaled(entry.Patch.Plan))])
        {
            KernelBase = engine.KernelBase,
        });
    }

    private void OnIntended(JournalProtocol.Intended intended)
    {
        if (memory.Current is not { } transaction || transaction.Id != intended.RequestId)
        {
            return;
        }

        CommitPart(transaction with { Number = intended.Transaction });
    }

    private void CommitNextPart()
    {
        if (memory.Current is { IsBetweenParts: true } transaction)
        {
            CommitPart(transaction);
        }
    }

    /// <summary>Has the world stopped for as many patches as one stop is for.</summary>
    private void CommitPart(PlannerTransaction transaction)
    {
        transaction = transaction with { Id = NextId(), IsBetweenParts = false };
        memory.Current = transaction;
        peers.Coordinator.Tell(new QuiesceProtocol.Commit(
            transaction.Id,
            transaction.Number,
            [.. transaction.Patches.Take(settings.PatchesPerStop)],
            [.. transaction.Reverts.Take(settings.PatchesPerStop)]));
    }

    private void OnJournalFailed(JournalProtocol.JournalFailed failed)
    {
        if (memory.Current is not { } transaction || transaction.Id != failed.RequestId)
        {
            return;
        }

        GiveUp(transaction, failed.Reason, wasIntended: false);
    }

    private void OnCommitted(QuiesceProtocol.Committed committed)
    {
        if (memory.Current is not { } transaction || transaction.Id != committed.RequestId)
        {
            return;
        }

        rest = TimeSpan.Zero;
        foreach (PatchPlan plan in committed.Applied)
        {
            book.Apply(plan);
        }

        foreach (QuiesceProtocol.FailedPatch failed in committed.Failed)
        {
            book.Abort(failed.Plan, failed.Reason, wasIntended: true);
        }

        foreach (PatchPlan plan in committed.Reverted)
        {
            book.Withdraw(plan, PatchingOff);
        }

        transaction = transaction.After(committed, settings.PatchesPerStop);
        memory.Current = transaction;
        if (transaction.IsBetweenParts)
        {
            Timers.StartSingleTimer(nameof(NextPart), NextPart.Instance, settings.BetweenStops);
            return;
        }

        JournalResult(transaction);
        if (!transaction.Observed.IsEmpty)
        {
            peers.Journal.Tell(new JournalProtocol.Record(NextId(), transaction.Observed));
        }

        if (transaction.Answer is (var request, var from))
        {
            memory.Enabled = request.Enabled;
            from.Tell(new PatchingSet(request.RequestId, request.Enabled, transaction.Applied.Length + transaction.Reverted));
        }

        End();
    }

    private void OnAborted(QuiesceProtocol.Aborted aborted)
    {
        if (memory.Current is not { } transaction || transaction.Id != aborted.RequestId)
        {
            return;
        }

        foreach (PatchPlan plan in aborted.Reverted)
        {
            book.Withdraw(plan, PatchingOff);
        }

        JournalResult(transaction with
        {
            Failed = [.. transaction.Failed, .. transaction.Patches.Select(patch => new QuiesceProtocol.FailedPatch(patch.Plan, aborted.Reason))],
        });
        log.Info("a patch transaction was given up: {0}", aborted.Reason);
        Rest();
        GiveUp(transaction, aborted.Reason, wasIntended: true);
    }

    /// <summary>Ends a transaction whose patches are not to be applied, as far as they have not been.</summary>
    private void GiveUp(PlannerTransaction transaction, string reason, bool wasIntended)
    {
        foreach (PreparedPatch patch in transaction.Patches)
        {
            engine.Discard(patch);
            book.Abort(patch.Plan, reason, wasIntended);
        }

        transaction.Answer?.From.Tell(new Refused(transaction.Answer.Value.Request.RequestId, reason));
        End();
    }

    private void JournalResult(PlannerTransaction transaction)
    {
        if (transaction.Applied.IsEmpty && transaction.Failed.IsEmpty)
        {
            return;
        }

        peers.Journal.Tell(new JournalProtocol.Complete(
            NextId(),
            transaction.Number,
            [.. transaction.Applied.Select(plan => Offset(plan.Window))],
            [.. transaction.Failed.Select(failed => new JournalProtocol.AbortedPatch(Offset(failed.Plan.Window), failed.Reason))]));
    }

    /// <summary>Takes no hot sites for a while, twice as long as the last time if nothing was committed since.</summary>
    private void Rest()
    {
        TimeSpan doubled = 2 * rest;
        rest = rest == TimeSpan.Zero ? settings.FirstRest : doubled < settings.LongestRest ? doubled : settings.LongestRest;
        resting = true;
        Timers.StartSingleTimer(nameof(RestOver), RestOver.Instance, rest);
    }

    private void End()
    {
        memory.Current = null;
        AnswerStopIfIdle();
        Begin();
    }

    private void Switch(SetPatching set, IActorRef from)
    {
        TakeNotices();
        if (!set.Enabled)
        {
            ImmutableArray<PatchPlan> standing = book.Standing;
            CommitPart(new PlannerTransaction(NextId(), [], standing, [], (set, from)));
            return;
        }

        if (!journalAvailable && !book.Withdrawn.IsEmpty)
        {
            from.Tell(new Refused(set.RequestId, "the patch journal is not available"));
            return;
        }

        memory.Enabled = true;

        List<(PreparedPatch Patch, long Exits)> prepared = [];
        foreach (PatchPlan plan in book.Withdrawn)
        {
            if (engine.Prepare(plan, out PreparationFailure? failure) is { } patch)
            {
                prepared.Add((patch, 0));
            }
            else
            {
                book.Abort(plan, failure?.Reason ?? "", wasIntended: false);
            }
        }

        if (prepared.Count == 0)
        {
            from.Tell(new PatchingSet(set.RequestId, Enabled: true, 0));
            return;
        }

        Intend(prepared, (set, from));
    }

    /// <summary>The stress mode: all patches are taken back, and at the next tick applied again.</summary>
    private void Churn()
    {
        if (memory.Current is null && switches.Count == 0)
        {
            Self.Tell(new SetPatching(NextId(), !memory.Enabled), ActorRefs.Nobody);
        }
    }

    private void TakeNotices()
    {
        engine.TakeNotices(notices);
        foreach (PatchNotice notice in notices)
        {
            book.Note(notice);
        }
    }

    private void AnswerStopIfIdle()
    {
        if (stop is not { } waiting || memory.Current is not null)
        {
            return;
        }

        TakeNotices();
        ImmutableArray<JournalEvent.Fact> facts =
        [
            .. engine.Unused().Where(plan => !book.WasUsed(plan.Window)).Select(plan => new JournalEvent.PatchMismatched(Offset(plan.Window), "its bytes were not found in this run")),
        ];
        if (!facts.IsEmpty && journalAvailable && peers.RecordUnused)
        {
            peers.Journal.Tell(new JournalProtocol.Record(NextId(), facts));
        }

        waiting.From.Tell(new Stopped(waiting.Request.RequestId, book.Summarize()));
    }

    private void RefuseSwitches(string reason)
    {
        while (switches.TryDequeue(out (SetPatching Request, IActorRef From) set))
        {
            set.From.Tell(new Refused(set.Request.RequestId, reason));
        }
    }

    private JournaledPatch Journaled(PatchPlan plan) =>
        JournaledPatch.Of(plan, engine.KernelBase) with { Symbol = Symbol(plan.Site) };

    private string Symbol(ulong address) => peers.Symbol(address) ?? string.Empty;

    private long Offset(ulong address) => unchecked((long)(address - engine.KernelBase));

    private sealed class NoticeTick
    {
        public static readonly NoticeTick Instance = new();
    }

    private sealed class RestOver
    {
        public static readonly RestOver Instance = new();
    }

    private sealed class NextPart
    {
        public static readonly NextPart Instance = new();
    }

    private sealed class ChurnTick
    {
        public static readonly ChurnTick Instance = new();
    }
}

/// <summary>Whom the planner works with.</summary>
/// <param name="Journal">Keeps intents and results.</param>
/// <param name="Coordinator">Stops the world.</param>
/// <param name="Replay">Whether patches of earlier runs are replayed.</param>
/// <param name="RecordUnused">Whether replayed patches that were never used are recorded as mismatched.</param>
public sealed record PlannerPeers(IActorRef Journal, IActorRef Coordinator, bool Replay, bool RecordUnused)
{
    /// <summary>Names a guest address, for whoever reads the journal without the guest. Any thread.</summary>
    public Func<ulong, string?> Symbol { get; init; } = _ => null;
}

/// <summary>What a planner leaves to its successor besides the book. Only ever touched by one of them at a time.</summary>
public sealed class PlannerMemory
{
    /// <summary>The transaction under way; its answers find whoever is the planner then.</summary>
    internal PlannerTransaction? Current { get; set; }

    /// <summary>Whether guest code is to be patched.</summary>
    internal bool Enabled { get; set; } = true;
}
