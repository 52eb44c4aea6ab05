using System.Collections.Immutable;
using Akka.Actor;
using Akka.Event;
using Dmp.Actors.Console;
using Dmp.Actors.Exits;
using Dmp.Actors.Journal;
using Dmp.Actors.Planning;
using Dmp.Actors.Quiesce;
using Dmp.Actors.Vcpus;
using Dmp.Actors.Writing;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Patching;
using static Dmp.Actors.Machine.MachineProtocol;

namespace Dmp.Actors.Machine;

/// <summary>
/// Owns a machine's life: starts its vCPUs, pauses and resumes them together, and takes the machine down when the run ends.
/// </summary>
/// <remarks>
/// A run ends in this order, each step bounded by a time, so that the report comes whatever hangs:
/// <list type="number">
/// <item>after a failure, or what may be one: pause all vCPUs and collect their state;</item>
/// <item>let the patch transaction under way come to its end;</item>
/// <item>stop the vCPUs, and with that join their threads;</item>
/// <item>drain the console to its last byte, which may still begin phases or show a panic;</item>
/// <item>take the last counters;</item>
/// <item>complete the result; whoever holds it writes the report, and then disposes the machine (see <see cref="MachineRun"/>).</item>
/// </list>
/// The aggregator and the console are restarted when they fail, and the guest does not notice. A vCPU whose emulator fails is not
/// run again: going on from a state that already surprised us could corrupt the guest's disk before it crashes.
/// </remarks>
public sealed class MachineSupervisor : ReceiveActor, IWithTimers
{
    // The console and the aggregator take part in rounds under numbers that no vCPU has.
    private const int ConsoleNumber = -1;
    private const int AggregatorNumber = -2;
    private const int PlannerNumber = -3;
    private const int CoordinatorNumber = -4;
    private const int JournalNumber = -5;
    private const string RoundTimer = "round";
    private const string RunTimer = "run";
    private const string PanicTimer = "panic";
    private const string ReplayTimer = "replay";

    private readonly ILoggingAdapter log = Context.GetLogger();
    private readonly IMachine machine;
    private readonly RunOptions options;
    private readonly ControlSettings settings;
    private readonly TaskCompletionSource<MachineResult> completion;
    private readonly ExitSampler sampler;
    private readonly PhaseLedger ledger = new();
    private readonly SortedDictionary<int, IActorRef> vcpus = [];
    private readonly List<VcpuDescription> descriptions = [];
    private readonly List<string> unfinished = [];
    private IActorRef aggregator = ActorRefs.Nobody;
    private IActorRef console = ActorRefs.Nobody;
    private readonly PatchBook book;
    private IActorRef planner = ActorRefs.Nobody;
    private IActorRef coordinator = ActorRefs.Nobody;
    private IActorRef journal = ActorRefs.Nobody;
    private bool guestStarted;
    private bool vcpusReady;
    private bool replayReady;
    private PatchSummary? patches;
    private PatchAudit? audit;
    private JournalState? journaled;
    private ImmutableArray<double> stopMicroseconds = [];

    private Stage stage = Stage.Starting;
    private long lastRequestId;
    private Round? round;
    private Action<Round>? roundEnded;
    private (long RequestId, IActorRef From)? request;
    private RunCause? cause;
    private TimeSpan? untilAt;
    private string? panic;
    private bool threadsEnded;
    private ExitSummary? summary;

    /// <summary>Creates the actor; use <see cref="Props"/>.</summary>
    /// <param name="machine">The machine.</param>
    /// <param name="options">What the run is to do.</param>
    /// <param name="settings">Times and limits.</param>
    /// <param name="completion">Receives the result.</param>
    public MachineSupervisor(
        IMachine machine, RunOptions options, ControlSettings settings, TaskCompletionSource<MachineResult> completion)
    {
        this.machine = machine;
        this.options = options;
        this.settings = settings;
        this.completion = completion;
        sampler = new ExitSampler(machine.Vcpus, options.Clock);
        book = new PatchBook(settings.PatchLimit);
        replayReady = machine.Patching is null;

        Receive<PauseAll>(OnPauseAll);
        Receive<ResumeAll>(OnResumeAll);
        Receive<GetStatus>(get => Sender.Tell(new MachineProtocol.Status(get.RequestId, stage)));
        Receive<End>(end => Finish(end.Cause));

        Receive<VcpuProtocol.Paused>(OnPaused);
        Receive<VcpuProtocol.Resumed>(answer => OnAnswer(answer.RequestId, answer.Vcpu, agreed: true));
        Receive<VcpuProtocol.Stopped>(answer => OnAnswer(answer.RequestId, answer.Vcpu, agreed: true));
        Receive<VcpuProtocol.Refused>(answer => OnAnswer(answer.RequestId, answer.Vcpu, agreed: false));
        Receive<VcpuProtocol.Described>(OnDescribed);
        Receive<VcpuProtocol.Ended>(ended => Finish(new RunCause.GuestStopped(ended.Stop)));
        Receive<VcpuProtocol.Crashed>(OnCrashed);

        Receive<ConsoleProtocol.Marked>(OnMarked);
        Receive<ConsoleProtocol.PumpFailed>(failed =>
            Finish(new RunCause.OwnFailure($"reading the console failed: {failed.Failure.Message}", failed.Failure)));
        Receive<ConsoleProtocol.Drained>(answer => OnAnswer(answer.RequestId, ConsoleNumber, agreed: true));
        Receive<ExitProtocol.Closed>(OnClosed);

        Receive<PlanningProtocol.Ready>(_ => OnReplayReady());
        Receive<ReplayTimedOut>(_ => OnReplayReady());
        Receive<PlanningProtocol.Stopped>(OnPlannerStopped);
        Receive<PlanningProtocol.SetPatching>(set =>
        {
            if (planner.IsNobody() || stage == Stage.Ending)
            {
                Sender.Tell(new PlanningProtocol.Refused(set.RequestId, "this machine is not patched"));
            }
            else
            {
                planner.Forward(set);
            }
        });
        Receive<QuiesceProtocol.StopTimes>(OnStopTimes);
        Receive<JournalProtocol.BecameAvailable>(available => planner.Forward(available));
        Receive<JournalProtocol.BecameUnavailable>(unavailable => planner.Forward(unavailable));
        Receive<JournalProtocol.State>(state =>
        {
            journaled = state.Journal;
            OnAnswer(state.RequestId, JournalNumber, agreed: true);
        });
        Receive<JournalProtocol.JournalFailed>(failed => OnAnswer(failed.RequestId, JournalNumber, agreed: true));
        Receive<JournalProtocol.Closed>(closed => OnAnswer(closed.RequestId, JournalNumber, agreed: true));

        Receive<RoundTimedOut>(OnRoundTimedOut);
        Receive<Terminated>(OnTerminated);

        Receive<ExitProtocol.GetTotals>(get => aggregator.Forward(get));
        Receive<ExitProtocol.GetTopSites>(get => aggregator.Forward(get));
        Receive<ConsoleProtocol.Input>(input => console.Forward(input));
    }

    /// <inheritdoc />
    public ITimerScheduler Timers { get; set; } = null!;

    /// <summary>How to create the supervisor of a machine.</summary>
    /// <param name="machine">The machine; disposed by whoever receives the result.</param>
    /// <param name="options">What the run is to do.</param>
    /// <param name="settings">Times and limits.</param>
    /// <param name="completion">Receives the result, however the run ends.</param>
    public static Props Props(
        IMachine machine, RunOptions options, ControlSettings settings, TaskCompletionSource<MachineResult> completion) =>
        Akka.Actor.Props.Create(() => new MachineSupervisor(machine, options, settings, completion))
            .WithDispatcher(ControlSettings.Dispatcher);

    /// <inheritdoc />
    protected override SupervisorStrategy SupervisorStrategy() => new OneForOneStrategy(
        settings.RestartLimit,
        settings.RestartWindow,
        failure =>
        {
            if (failure is GuestCodeDamagedException)
            {
                Self.Tell(new End(new RunCause.OwnFailure(failure.Message, failure)));
                return Directive.Stop;
            }

            log.Warning("a control actor failed and is restarted: {0}", failure.Message);
            return Directive.Restart;
        });

    /// <inheritdoc />
    protected override void PreStart()
    {
        aggregator = Context.Watch(Context.ActorOf(ExitAggregator.Props(sampler, ledger, settings), "exits"));
        console = Context.Watch(Context.ActorOf(
            ConsoleActor.Props(machine.Console, options.Sink, options.Until, sampler, settings), "console"));
        var clock = new StopClock(machine.Vcpus.Count);
        foreach (IVcpu vcpu in machine.Vcpus)
        {
            vcpus.Add(vcpu.Index, Context.Watch(Context.ActorOf(VcpuActor.Props(vcpu, clock), $"vcpu-{vcpu.Index}")));
        }

        if (machine.Patching is { } engine)
        {
            StartPatching(engine, clock);
        }

        // A vCPU begins paused, as soon as its thread is there.
        AskVcpus(id => new VcpuProtocol.Pause(id), settings.PauseTimeout, started =>
        {
            if (!started.Complete)
            {
                Finish(new RunCause.OwnFailure($"{Names(started.Awaited)} did not start", Failure: null));
                return;
            }

            vcpusReady = true;
            StartGuest();
        });
    }

    private void StartPatching(IPatchEngine engine, StopClock clock)
    {
        journal = Context.Watch(Context.ActorOf(
            options.Journal is { } connection
                ? JournalGuardian.Props(connection, options.KernelId, settings)
                : VolatileJournal.Props(),
            "journal"));
        IActorRef writer = Context.Watch(Context.ActorOf(GuestMemoryWriter.Props(engine), "writer"));
        coordinator = Context.Watch(Context.ActorOf(
            QuiesceCoordinator.Props(vcpus.ToImmutableSortedDictionary(), writer, clock, settings), "quiesce"));
        var peers = new PlannerPeers(journal, coordinator, options.Replay, RecordUnused: true)
        {
            Symbol = address => (machine as IMachineFacts)?.Symbol(address),
        };
        planner = Context.Watch(Context.ActorOf(PatchPlanner.Props(engine, book, peers, settings), "planner"));
        aggregator.Tell(new ExitProtocol.ReportHotSites(planner));
        Timers.StartSingleTimer(ReplayTimer, new ReplayTimedOut(), settings.ReplayWait);
    }

    private void OnReplayReady()
    {
        replayReady = true;
        StartGuest();
    }

    /// <summary>The guest starts when its vCPUs are there, and the patches of earlier runs, or there are none.</summary>
    private void StartGuest()
    {
        if (guestStarted || !vcpusReady || !replayReady || stage != Stage.Starting)
        {
            return;
        }

        guestStarted = true;
        Timers.Cancel(ReplayTimer);
        sampler.Start();
        if (options.Timeout is { } limit)
        {
            Timers.StartSingleTimer(RunTimer, new End(new RunCause.TimedOut(limit)), limit);
        }

        ResumeVcpus(vcpus.Keys, _ => { });
    }

    private void OnPlannerStopped(PlanningProtocol.Stopped stopped)
    {
        patches = stopped.Summary;
        OnAnswer(stopped.RequestId, PlannerNumber, agreed: true);
    }

    private void OnStopTimes(QuiesceProtocol.StopTimes times)
    {
        stopMicroseconds = times.Microseconds;
        OnAnswer(times.RequestId, CoordinatorNumber, agreed: true);
    }

    /// <inheritdoc />
    protected override void PostStop()
    {
        // Only does something when the supervisor itself failed: the result must come in any case.
        completion.TrySetResult(new MachineResult(
            new RunOutcome.VmmFailed("the machine supervisor failed; its log says why", Failure: null),
            summary ?? LastFigures(),
            untilAt,
            [.. descriptions],
            [.. unfinished],
            threadsEnded));
    }

    private void OnPauseAll(PauseAll pause)
    {
        if (stage == Stage.Paused)
        {
            Sender.Tell(new AllPaused(pause.RequestId));
            return;
        }

        if (stage != Stage.Running)
        {
            Sender.Tell(new MachineProtocol.Refused(pause.RequestId, stage));
            return;
        }

        stage = Stage.Pausing;
        request = (pause.RequestId, Sender);
        AskVcpus(id => new VcpuProtocol.Pause(id), settings.PauseTimeout, paused =>
        {
            if (paused.Agreed.Count == vcpus.Count)
            {
                stage = Stage.Paused;
                AnswerRequest(id => new AllPaused(id));
                return;
            }

            AnswerRequest(id => new NotAllPaused(id, [.. vcpus.Keys.Except(paused.Agreed)]));
            ResumeVcpus(paused.Agreed, _ => { });
        });
    }

    private void OnResumeAll(ResumeAll resume)
    {
        if (stage == Stage.Running)
        {
            Sender.Tell(new AllResumed(resume.RequestId));
            return;
        }

        if (stage != Stage.Paused)
        {
            Sender.Tell(new MachineProtocol.Refused(resume.RequestId, stage));
            return;
        }

        request = (resume.RequestId, Sender);
        ResumeVcpus(vcpus.Keys, resumed => AnswerRequest(id => resumed.Agreed.Count == vcpus.Count
            ? new AllResumed(id)
            : new NotAllResumed(id, [.. vcpus.Keys.Except(resumed.Agreed)])));
    }

    private void ResumeVcpus(IEnumerable<int> who, Action<Round> ended)
    {
        stage = Stage.Resuming;
        AskVcpus(id => new VcpuProtocol.Resume(id), settings.PauseTimeout, who, resumed =>
        {
            stage = Stage.Running;
            ended(resumed);
        });
    }

    private void OnPaused(VcpuProtocol.Paused paused)
    {
        if (round?.Id == paused.RequestId)
        {
            OnAnswer(paused.RequestId, paused.Vcpu, agreed: true);
        }
        else if (stage is Stage.Running or Stage.Resuming)
        {
            // Too late for the pause it was asked for. The others run again, so it has to as well.
            vcpus[paused.Vcpu].Tell(new VcpuProtocol.Resume(++lastRequestId));
        }
    }

    private void OnDescribed(VcpuProtocol.Described described)
    {
        if (round?.Id == described.RequestId)
        {
            descriptions.Add(new VcpuDescription(described.Vcpu, described.State));
        }

        OnAnswer(described.RequestId, described.Vcpu, agreed: true);
    }

    private void OnCrashed(VcpuProtocol.Crashed crashed)
    {
        string reason = $"vCPU {crashed.Vcpu} failed: {crashed.Failure.GetType().Name}: {crashed.Failure.Message}";
        if (stage == Stage.Ending)
        {
            // Not what the run ends with, but nothing to pass over.
            log.Warning("while the run ended, {0}", reason);
        }

        Finish(new RunCause.OwnFailure(reason, crashed.Failure));
    }

    private void OnMarked(ConsoleProtocol.Marked marked)
    {
        switch (marked.Mark)
        {
            case ConsoleMark.PhaseBegan phase:
                aggregator.Tell(new ExitProtocol.CutPhase(phase.Name, marked.At));
                break;
            case ConsoleMark.UntilSeen:
                untilAt ??= marked.At.At;
                Finish(new RunCause.UntilSeen());
                break;
            case ConsoleMark.KernelPanicked panicked when panic is null:
                panic = panicked.Line;
                if (stage != Stage.Ending)
                {
                    Timers.StartSingleTimer(PanicTimer, new End(new RunCause.Panicked()), settings.PanicGrace);
                }

                break;
        }
    }

    private void OnTerminated(Terminated terminated)
    {
        if (terminated.ActorRef.Equals(aggregator))
        {
            aggregator = ActorRefs.Nobody;
            Finish(new RunCause.OwnFailure("the exit aggregator failed too often", Failure: null));
            OnAnswer(round?.Id ?? 0, AggregatorNumber, agreed: false);
        }
        else if (terminated.ActorRef.Equals(console))
        {
            console = ActorRefs.Nobody;
            Finish(new RunCause.OwnFailure("the console failed too often", Failure: null));
            OnAnswer(round?.Id ?? 0, ConsoleNumber, agreed: false);
        }
        else
        {
            Finish(new RunCause.OwnFailure($"{terminated.ActorRef.Path.Name} failed too often", Failure: null));
        }
    }

    /// <summary>Ends the run. What comes first is the cause; what comes later is a consequence of taking the machine down.</summary>
    private void Finish(RunCause why)
    {
        if (stage == Stage.Ending)
        {
            return;
        }

        stage = Stage.Ending;
        cause = why;
        Timers.Cancel(RunTimer);
        Timers.Cancel(PanicTimer);
        AnswerRequest(id => new MachineProtocol.Refused(id, Stage.Ending));

        // What one vCPU cannot go on from, the others are not to go on from either: they stand before anything else is waited for.
        if (why.WantsState)
        {
            PauseAndDescribe();
        }
        else
        {
            StopPatching();
        }
    }

    private void PauseAndDescribe() => AskVcpus(id => new VcpuProtocol.Pause(id), settings.PauseTimeout, paused =>
    {
        if (!paused.Complete)
        {
            unfinished.Add($"{Names(paused.Awaited)} did not reach a safe point; no state");
        }

        // One that refused to pause has crashed or stopped, and can be described all the same.
        AskVcpus(id => new VcpuProtocol.Describe(id), settings.PauseTimeout, vcpus.Keys.Except(paused.Awaited), _ => StopPatching());
    });

    /// <summary>The transaction under way needs its vCPUs, which may stand but not have ended; none begins after it.</summary>
    private void StopPatching() => AskOne(planner, PlannerNumber, id => new PlanningProtocol.Stop(id), stopped =>
    {
        if (stopped.Agreed.IsEmpty && !planner.IsNobody())
        {
            unfinished.Add("the patch planner did not come to an end");
        }

        StopVcpus();
    });

    private void StopVcpus() => AskVcpus(id => new VcpuProtocol.Stop(id), settings.StopTimeout, stopped =>
    {
        threadsEnded = stopped.Complete;
        if (!stopped.Complete)
        {
            unfinished.Add($"{Names(stopped.Awaited)} did not stop within {settings.StopTimeout.TotalSeconds} s");
        }

        // The journal answers in order: when it tells its state, it has stored the results that were on their way.
        AskOne(coordinator, CoordinatorNumber, id => new QuiesceProtocol.GetStopTimes(id), _ =>
            AskOne(journal, JournalNumber, id => new JournalProtocol.GetState(id), _ =>
            {
                Audit();
                CloseJournal();
            }));
    });

    private void CloseJournal() => AskOne(journal, JournalNumber, id => new JournalProtocol.Close(id), closed =>
    {
        if (closed.Agreed.IsEmpty && !journal.IsNobody())
        {
            unfinished.Add("the patch journal was not closed in time");
        }

        DrainConsole();
    });

    /// <summary>Whether the guest's code, the engine and the journal agree. Only when no vCPU can run any more.</summary>
    private void Audit()
    {
        const int MostLines = 5;
        if (machine.Patching is not { } engine || !threadsEnded)
        {
            return;
        }

        try
        {
            audit = PatchAudit.Of(engine, journaled);
        }
        catch (Exception failure)
        {
            // The run is over: what remains is to say so, and to write the report.
            unfinished.Add($"the patches cannot be verified: {failure.Message}");
            return;
        }

        foreach (string difference in audit.Differences.Take(MostLines))
        {
            log.Warning("the patch at {0}", difference);
        }
    }

    private void DrainConsole() => AskOne(console, ConsoleNumber, id => new ConsoleProtocol.Drain(id), drained =>
    {
        if (drained.Agreed.IsEmpty)
        {
            // Its pump may still be reading from the machine.
            threadsEnded = false;
            unfinished.Add("the console was not drained; output may be missing");
        }

        CloseCounters();
    });

    private void CloseCounters() => AskOne(aggregator, AggregatorNumber, id => new ExitProtocol.Close(id), closed =>
    {
        if (closed.Agreed.IsEmpty)
        {
            unfinished.Add("the exit aggregator did not answer; phases may be missing");
        }

        summary ??= LastFigures();
        RunOutcome outcome = RunOutcome.Of(cause!, untilAt is not null, panic);
        completion.TrySetResult(new MachineResult(
            outcome,
            summary,
            untilAt,
            outcome.IsFailure ? [.. descriptions.OrderBy(description => description.Vcpu)] : [],
            [.. unfinished],
            threadsEnded)
        {
            Patches = Patches(),
            StopMicroseconds = stopMicroseconds,
        });
    });

    private PatchSummary? Patches() => machine.Patching is null ? null : (patches ?? book.Summarize()) with
    {
        Verified = audit?.Verified,
        Mismatched = audit?.Mismatched,
    };

    private void OnClosed(ExitProtocol.Closed closed)
    {
        if (round?.Id == closed.RequestId)
        {
            summary = closed.Summary;
        }

        OnAnswer(closed.RequestId, AggregatorNumber, agreed: true);
    }

    private void AskVcpus(Func<long, object> question, TimeSpan timeout, Action<Round> ended) =>
        AskVcpus(question, timeout, vcpus.Keys, ended);

    private void AskVcpus(Func<long, object> question, TimeSpan timeout, IEnumerable<int> who, Action<Round> ended) =>
        AskAll(question, timeout, [.. who.Select(index => (index, vcpus[index]))], ended);

    private void AskOne(IActorRef child, int number, Func<long, object> question, Action<Round> ended) =>
        AskAll(question, settings.DrainTimeout, child.IsNobody() ? [] : [(number, child)], ended);

    /// <summary>Begins a round; the one that was under way is forgotten, late answers to it do nothing.</summary>
    private void AskAll(
        Func<long, object> question, TimeSpan timeout, ImmutableArray<(int Number, IActorRef Actor)> asked, Action<Round> ended)
    {
        long id = ++lastRequestId;
        round = Round.Of(id, asked.Select(child => child.Number));
        roundEnded = ended;
        foreach ((_, IActorRef actor) in asked)
        {
            actor.Tell(question(id));
        }

        Timers.StartSingleTimer(RoundTimer, new RoundTimedOut(id), timeout);
        EndRoundIf(round.Complete);
    }

    private void OnAnswer(long id, int who, bool agreed)
    {
        if (round is { } open && open.Id == id)
        {
            round = open.Answered(who, agreed);
            EndRoundIf(round.Complete);
        }
    }

    private void OnRoundTimedOut(RoundTimedOut timedOut) => EndRoundIf(round?.Id == timedOut.Id);

    private void EndRoundIf(bool over)
    {
        if (over && round is { } ended && roundEnded is { } then)
        {
            // Forgotten first: what follows usually begins the next round.
            round = null;
            roundEnded = null;
            Timers.Cancel(RoundTimer);
            then(ended);
        }
    }

    // Without the aggregator. Should the counters themselves be what fails, the report still has to come.
    private ExitSummary LastFigures()
    {
        try
        {
            return ExitAggregator.Summarize(sampler, ledger, settings.ReportSites);
        }
        catch (Exception failure)
        {
            unfinished.Add($"the exit counters cannot be read: {failure.Message}");
            return new ExitSummary(ExitSample.Zero, [], [], []);
        }
    }

    private void AnswerRequest(Func<long, object> answer)
    {
        if (request is { } open)
        {
            request = null;
            open.From.Tell(answer(open.RequestId));
        }
    }

    private static string Names(IEnumerable<int> vcpus) => $"vCPU {string.Join(", ", vcpus)}";

    private sealed record RoundTimedOut(long Id);

    private sealed record ReplayTimedOut;
}
