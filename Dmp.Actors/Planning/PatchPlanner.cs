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
/// Without a durable intent nothing is applied: while the journal is unavailable, hot sites are dropped, and come back as hot as they are
/// when it is available again. What must survive a restart of this actor lies in the <see cref="PatchBook"/> that it is lent.
/// </remarks>
public sealed class PatchPlanner : ReceiveActor, IWithTimers
{
    private readonly ILoggingAdapter log = Context.GetLogger();
    private readonly IPatchEngine engine;
    private readonly PatchBook book;
    private readonly PlannerPeers peers;
    private readonly ControlSettings settings;
    private readonly List<PatchNotice> notices = [];
    private readonly Queue<HotSite> hot = new();
    private readonly Queue<(SetPatching Request, IActorRef From)> switches = new();

    private static long lastRequestId;
    private Transaction? current;
    private bool journalAvailable;
    private bool enabled = true;
    private TimeSpan at;
    private (Stop Request, IActorRef From)? stop;

    /// <summary>Creates the actor; use <see cref="Props"/>.</summary>
    /// <param name="engine">Plans and prepares.</param>
    /// <param name="book">What is known; outlives the actor.</param>
    /// <param name="peers">Whom it works with.</param>
    /// <param name="settings">Times and limits.</param>
    public PatchPlanner(IPatchEngine engine, PatchBook book, PlannerPeers peers, ControlSettings settings)
    {
        this.engine = engine;
        this.book = book;
        this.peers = peers;
        this.settings = settings;
        Receive<HotSitesDetected>(OnHotSites);
        Receive<NoticeTick>(_ => TakeNotices());
        Receive<ChurnTick>(_ => Churn());
        Receive<SetPatching>(set =>
        {
            switches.Enqueue((set, Sender));
            Begin();
        });
        Receive<Stop>(request =>
        {
            stop = (request, Sender);
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
    public static Props Props(IPatchEngine engine, PatchBook book, PlannerPeers peers, ControlSettings settings) =>
        Akka.Actor.Props.Create(() => new PatchPlanner(engine, book, peers, settings)).WithDispatcher(ControlSettings.Dispatcher);

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

        // The journal told its state to the predecessor. An answer of the coordinator to the predecessor still finds this actor.
        peers.Journal.Tell(new JournalProtocol.GetState(NextId()));
    }

    /// <inheritdoc />
    protected override void PreRestart(Exception reason, object message)
    {
        foreach ((SetPatching request, IActorRef from) in switches)
        {
            from.Tell(new Refused(request.RequestId, "the planner failed"));
        }

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
            if (peers.Replay)
            {
                ReplayPlan plan = available.Journal.Replayable(engine.Templates);
                engine.Replay([.. plan.Patches.Select(patch => patch.ToPlan(engine.KernelBase))]);
            }

            Context.Parent.Tell(new Ready());
        }

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
            hot.Enqueue(site);
        }

        Begin();
    }

    /// <summary>Begins the next transaction, if none is under way and there is something to do.</summary>
    private void Begin()
    {
        if (current is not null || stop is not null)
        {
            return;
        }

        if (switches.TryDequeue(out (SetPatching Request, IActorRef From) set))
        {
            Switch(set.Request, set.From);
            return;
        }

        if (hot.Count == 0)
        {
            return;
        }

        if (!journalAvailable || !enabled)
        {
            hot.Clear();
            return;
        }

        TakeNotices();
        List<(PreparedPatch Patch, long Exits)> prepared = [];
        List<JournalEvent.Fact> facts = [];
        while (hot.TryDequeue(out HotSite? site))
        {
            Consider(site, prepared, facts);
        }

        if (facts.Count > 0)
        {
            peers.Journal.Tell(new JournalProtocol.Record(NextId(), [.. facts]));
        }

        Intend(prepared, answer: null);
    }

    private void Consider(HotSite site, List<(PreparedPatch Patch, long Exits)> prepared, List<JournalEvent.Fact> facts)
    {
        bool covered = prepared.Exists(other => site.Rip >= other.Patch.Plan.Window && site.Rip < other.Patch.Plan.End);
        if (covered || !book.WantsPlan(site, (address, bytes) => engine.HasBytes(address, bytes.AsSpan()), out _))
        {
            return;
        }

        switch (engine.Plan(site.Rip, site.Kind))
        {
            case PlanResult.Refused refused:
                book.Refuse(site.Rip, refused.Bytes, refused.Reason);
                facts.Add(new JournalEvent.PatchRefused(Offset(site.Rip), refused.Bytes, refused.Reason, site.Kind)
                {
                    Symbol = Symbol(site.Rip),
                    KernelBase = engine.KernelBase,
                });
                break;
            case PlanResult.Planned { Plan: var plan } when book.IsDisabled(plan):
                book.SwitchOff(site.Rip);
                break;
            case PlanResult.Planned { Plan: var plan }:
                if (engine.Prepare(plan, out string reason) is { } patch)
                {
                    prepared.Add((patch, site.Exits));
                }
                else
                {
                    book.Postpone(site.Rip, reason);
                }

                break;
        }
    }

    private void Intend(List<(PreparedPatch Patch, long Exits)> prepared, (SetPatching Request, IActorRef From)? answer)
    {
        if (prepared.Count == 0)
        {
            return;
        }

        long id = NextId();
        current = new Transaction(id, [.. prepared.Select(entry => entry.Patch)], [], answer);
        peers.Journal.Tell(new JournalProtocol.Intend(id, [.. prepared.Select(entry => Journaled(entry.Patch.Plan))])
        {
            KernelBase = engine.KernelBase,
        });
        observed = [.. prepared.Select(entry =>
            (JournalEvent.Fact)new JournalEvent.PatchObserved(Offset(entry.Patch.Plan.Window), entry.Exits, at))];
    }

    private ImmutableArray<JournalEvent.Fact> observed = [];

    private void OnIntended(JournalProtocol.Intended intended)
    {
        if (current is not { } transaction || transaction.Id != intended.RequestId)
        {
            // A predecessor's. Nothing was changed; the journal resolves it when it is opened the next time.
            return;
        }

        peers.Coordinator.Tell(
            new QuiesceProtocol.Commit(transaction.Id, intended.Transaction, transaction.Patches, transaction.Reverts));
    }

    private void OnJournalFailed(JournalProtocol.JournalFailed failed)
    {
        if (current is not { } transaction || transaction.Id != failed.RequestId)
        {
            return;
        }

        foreach (PreparedPatch patch in transaction.Patches)
        {
            book.Postpone(patch.Plan.Site, failed.Reason);
        }

        transaction.Answer?.From.Tell(new Refused(transaction.Answer.Value.Request.RequestId, failed.Reason));
        End();
    }

    private void OnCommitted(QuiesceProtocol.Committed committed)
    {
        foreach (PatchPlan plan in committed.Applied)
        {
            book.Apply(plan);
        }

        foreach (QuiesceProtocol.FailedPatch failed in committed.Failed)
        {
            book.Abort(failed.Plan, failed.Reason);
        }

        foreach (PatchPlan plan in committed.Reverted)
        {
            book.Withdraw(plan, "patching was switched off");
        }

        if (!committed.Applied.IsEmpty || !committed.Failed.IsEmpty)
        {
            peers.Journal.Tell(new JournalProtocol.Complete(
                NextId(),
                committed.Transaction,
                [.. committed.Applied.Select(plan => Offset(plan.Window))],
                [.. committed.Failed.Select(failed => new JournalProtocol.AbortedPatch(Offset(failed.Plan.Window), failed.Reason))]));
            peers.Journal.Tell(new JournalProtocol.Record(NextId(), observed));
        }

        if (current is { } transaction && transaction.Id == committed.RequestId)
        {
            transaction.Answer?.From.Tell(new PatchingSet(
                transaction.Answer.Value.Request.RequestId, enabled, committed.Applied.Length + committed.Reverted.Length));
            End();
        }
    }

    private void OnAborted(QuiesceProtocol.Aborted aborted)
    {
        foreach (PreparedPatch patch in aborted.Commit.Patches)
        {
            book.Abort(patch.Plan, aborted.Reason);
        }

        if (!aborted.Commit.Patches.IsEmpty)
        {
            peers.Journal.Tell(new JournalProtocol.Complete(
                NextId(),
                aborted.Commit.Transaction,
                [],
                [.. aborted.Commit.Patches.Select(patch => new JournalProtocol.AbortedPatch(Offset(patch.Plan.Window), aborted.Reason))]));
        }

        log.Info("a patch transaction was given up: {0}", aborted.Reason);
        if (current is { } transaction && transaction.Id == aborted.RequestId)
        {
            transaction.Answer?.From.Tell(new Refused(transaction.Answer.Value.Request.RequestId, aborted.Reason));
            End();
        }
    }

    private void End()
    {
        current = null;
        AnswerStopIfIdle();
        Begin();
    }

    private void Switch(SetPatching set, IActorRef from)
    {
        TakeNotices();
        enabled = set.Enabled;
        if (!set.Enabled)
        {
            ImmutableArray<PatchPlan> standing = book.Standing;
            current = new Transaction(NextId(), [], standing, (set, from));
            peers.Coordinator.Tell(new QuiesceProtocol.Commit(current.Id, Transaction: 0, [], standing));
            return;
        }

        List<(PreparedPatch Patch, long Exits)> prepared = [];
        foreach (PatchPlan plan in book.Withdrawn)
        {
            if (engine.Prepare(plan, out _) is { } patch)
            {
                prepared.Add((patch, 0));
            }
        }

        if (prepared.Count == 0 || !journalAvailable)
        {
            from.Tell(new PatchingSet(set.RequestId, enabled, 0));
            return;
        }

        Intend(prepared, (set, from));
    }

    /// <summary>The stress mode: all patches are taken back, and at the next tick applied again.</summary>
    private void Churn()
    {
        if (current is null && switches.Count == 0)
        {
            Self.Tell(new SetPatching(NextId(), !enabled), ActorRefs.Nobody);
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
        if (stop is not { } waiting || current is not null)
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

    private JournaledPatch Journaled(PatchPlan plan) =>
        JournaledPatch.Of(plan, engine.KernelBase) with { Symbol = Symbol(plan.Site) };

    private string Symbol(ulong address) => peers.Symbol(address) ?? string.Empty;

    private long Offset(ulong address) => unchecked((long)(address - engine.KernelBase));

    private sealed record Transaction(
        long Id,
        ImmutableArray<PreparedPatch> Patches,
        ImmutableArray<PatchPlan> Reverts,
        (SetPatching Request, IActorRef From)? Answer);

    private sealed class NoticeTick
    {
        public static readonly NoticeTick Instance = new();
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
