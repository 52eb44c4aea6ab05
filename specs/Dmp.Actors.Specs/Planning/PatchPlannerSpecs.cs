using System.Collections.Immutable;
using Akka.Actor;
using Akka.TestKit;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Exits;
using Dmp.Actors.Journal;
using Dmp.Actors.Planning;
using Dmp.Actors.Quiesce;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;
using static Dmp.Actors.Planning.PlanningProtocol;

namespace Dmp.Actors.Specs.Planning;

/// <summary>The planner between a journal and a coordinator that only answer when the spec wants it.</summary>
public sealed class PatchPlannerSpecs : TestKit
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);
    private static readonly ControlSettings TwoPerStop = Settings.Shipped with { PatchesPerStop = 2 };

    private readonly FakePatchEngine engine = new();
    private readonly PatchBook book = new(patchLimit: 4);
    private readonly TestProbe journal;
    private readonly TestProbe coordinator;
    private readonly TestProbe parent;
    private readonly IActorRef planner;
    private long settled;

    public PatchPlannerSpecs()
        : base(Settings.InVirtualTime)
    {
        journal = CreateTestProbe();
        coordinator = CreateTestProbe();
        parent = CreateTestProbe();
        var peers = new PlannerPeers(journal.Ref, coordinator.Ref, Replay: true, RecordUnused: true);
        planner = RestartingParent.Of(this, PatchPlanner.Props(engine, book, peers, TwoPerStop), parent);
    }

    private TestScheduler Time => (TestScheduler)Sys.Scheduler;

    [Fact(DisplayName = "Nothing is committed before the intent is durable, and the result is journaled after it")]
    public async Task Intent_first()
    {
        await OpenAsync();
        Heat(0x100);
        JournalProtocol.Intend intend = await IntendAsync();
        Assert.Equal(0x100, Assert.Single(intend.Patches).Offset);
        await SettleAsync();
        Assert.False(coordinator.HasMessages);

        planner.Tell(new JournalProtocol.Intended(intend.RequestId, 7), journal);
        QuiesceProtocol.Commit commit = await CommitAsync();
        Assert.Equal(7, commit.Transaction);
        await SettleAsync();
        Assert.False(journal.HasMessages);

        Committed(commit);
        JournalProtocol.Complete complete = await CompleteAsync();
        Assert.Equal(7, complete.Transaction);
        Assert.Equal(0x100L, Assert.Single(complete.Applied));
        var observed = Assert.IsType<JournalEvent.PatchObserved>(
            Assert.Single((await journal.ExpectMsgAsync<JournalProtocol.Record>(Limit)).Facts));
        Assert.Equal((0x100L, 100L), (observed.Offset, observed.Exits));
        Assert.Equal(1, book.Applied);
    }

    [Fact(DisplayName = "Sites that become hot together share one transaction, those that come during it the next one")]
    public async Task Batches()
    {
        await OpenAsync();
        Heat(0x100, 0x102, 0x200);
        JournalProtocol.Intend first = await IntendAsync();
        Heat(0x300);
        Heat(0x100);
        Assert.Equal([0x100L, 0x200], first.Patches.Select(patch => patch.Offset));
        Committed(await CommitAsync(first));
        await CompleteAsync();
        await journal.ExpectMsgAsync<JournalProtocol.Record>(Limit);
        Assert.Equal([0x300L], (await IntendAsync()).Patches.Select(patch => patch.Offset));
    }

    [Fact(DisplayName = "A batch never takes the machine over its budget of patches")]
    public async Task Budget()
    {
        await OpenAsync();
        Heat(0x100, 0x200, 0x300, 0x400, 0x500);
        Assert.Equal(4, (await IntendAsync()).Patches.Length);
        Assert.Equal("the machine has 4 patches", book.Summarize().Find(FakePatchEngine.Base + 0x500)?.Reason);
    }

    [Fact(DisplayName = "A transaction that is given up is journaled with the reason, and its sites stay candidates")]
    public async Task Aborted()
    {
        await OpenAsync();
        Heat(0x100);
        QuiesceProtocol.Commit commit = await CommitAsync(await IntendAsync());
        planner.Tell(new QuiesceProtocol.Aborted(commit.RequestId, commit, "vCPU 1 did not stop in time"), coordinator);
        JournalProtocol.Complete complete = await CompleteAsync();
        Assert.Empty(complete.Applied);
        Assert.Equal(new JournalProtocol.AbortedPatch(0x100, "vCPU 1 did not stop in time"), Assert.Single(complete.Aborted));
        Assert.Equal((1, 0), (book.Aborted, book.Applied));

        // As hot as it is, it comes again.
        Time.Advance(Settings.Shipped.FirstRest);
        Heat(0x100);
        Assert.Single((await IntendAsync()).Patches);
    }

    [Fact(DisplayName = "After a transaction that is given up hot sites wait, twice as long after each, until one is committed")]
    public async Task Rests()
    {
        TimeSpan first = Settings.Shipped.FirstRest;
        await OpenAsync();
        foreach (TimeSpan rest in (TimeSpan[])[first, 2 * first, 4 * first])
        {
            await GiveUpAsync();
            Time.Advance(rest - TimeSpan.FromMilliseconds(1));
            Heat(0x100);
            await SettleAsync();
            Assert.False(journal.HasMessages);
            Time.Advance(TimeSpan.FromMilliseconds(1));
        }

        Heat(0x100);
        Committed(await CommitAsync(await IntendAsync()));
        await CompleteAsync();
        await journal.ExpectMsgAsync<JournalProtocol.Record>(Limit);
        Heat(0x200);
        await GiveUpAsync(await IntendAsync());
        Time.Advance(first);
        Heat(0x200);
        Assert.Single((await IntendAsync()).Patches);

        async Task GiveUpAsync(JournalProtocol.Intend? intend = null)
        {
            if (intend is null)
            {
                Heat(0x100);
                intend = await IntendAsync();
            }

            QuiesceProtocol.Commit commit = await CommitAsync(intend);
            planner.Tell(new QuiesceProtocol.Aborted(commit.RequestId, commit, "vCPU 1 did not stop in time"), coordinator);
            await CompleteAsync();
            await SettleAsync();
        }
    }

    [Fact(DisplayName = "Nothing rests for ever: the pauses after transactions that are given up have a limit")]
    public async Task Rests_at_most()
    {
        await OpenAsync();
        for (int round = 0; round < 20; round++)
        {
            Heat(0x100);
            QuiesceProtocol.Commit commit = await CommitAsync(await IntendAsync());
            planner.Tell(new QuiesceProtocol.Aborted(commit.RequestId, commit, "vCPU 1 did not stop in time"), coordinator);
            await CompleteAsync();
            await SettleAsync();
            Time.Advance(Settings.Shipped.LongestRest);
            await SettleAsync();
        }
    }

    [Fact(DisplayName = "Patches of a transaction that is given up are in nobody's way: the engine is told")]
    public async Task Given_up()
    {
        await OpenAsync();
        Heat(0x100);
        QuiesceProtocol.Commit commit = await CommitAsync(await IntendAsync());
        planner.Tell(new QuiesceProtocol.Aborted(commit.RequestId, commit, "vCPU 1 did not stop in time"), coordinator);
        await CompleteAsync();
        await SettleAsync();
        Assert.Equal([FakePatchEngine.Base + 0x100], engine.Discarded);

        Time.Advance(Settings.Shipped.FirstRest);
        Heat(0x200);
        JournalProtocol.Intend intend = await IntendAsync();
        planner.Tell(new JournalProtocol.JournalFailed(intend.RequestId, "the disk is full"), journal);
        await SettleAsync();
        Assert.Equal([FakePatchEngine.Base + 0x100, FakePatchEngine.Base + 0x200], engine.Discarded);
        Assert.Equal(1, book.Aborted);
    }

    [Fact(DisplayName = "A patch whose bytes had changed is journaled as aborted beside those that were applied")]
    public async Task Bytes_changed()
    {
        await OpenAsync();
        Heat(0x100, 0x200);
        QuiesceProtocol.Commit commit = await CommitAsync(await IntendAsync());
        planner.Tell(
            new QuiesceProtocol.Committed(
                commit.RequestId,
                commit.Transaction,
                [commit.Patches[0].Plan],
                [new QuiesceProtocol.FailedPatch(commit.Patches[1].Plan, "its bytes changed")],
                []),
            coordinator);
        JournalProtocol.Complete complete = await CompleteAsync();
        Assert.Equal(0x100L, Assert.Single(complete.Applied));
        Assert.Equal(new JournalProtocol.AbortedPatch(0x200, "its bytes changed"), Assert.Single(complete.Aborted));
    }

    [Fact(DisplayName = "A site that cannot be patched is journaled and not asked about again until its bytes change")]
    public async Task Refusal()
    {
        await OpenAsync();
        engine.Unpatchable[FakePatchEngine.Base + 0x100] = new PlanResult.Refused("a branch leads into it", [0xf4]);
        Heat(0x100);
        var refused = Assert.IsType<JournalEvent.PatchRefused>(
            Assert.Single((await journal.ExpectMsgAsync<JournalProtocol.Record>(Limit)).Facts));
        Assert.Equal((0x100L, "a branch leads into it"), (refused.SiteOffset, refused.Reason));
        Heat(0x100);
        await SettleAsync();
        Assert.Single(engine.Asked);
        engine.BytesAreTheSame = false;
        Heat(0x100);
        await journal.ExpectMsgAsync<JournalProtocol.Record>(Limit);
        Assert.Equal(2, engine.Asked.Count);
    }

    [Fact(DisplayName = "A site for whose patch there will never be room is refused as well; one that another is in the way of is looked at again")]
    public async Task Preparation_fails()
    {
        await OpenAsync();
        ulong never = FakePatchEngine.Base + 0x100;
        ulong later = FakePatchEngine.Base + 0x200;
        engine.Unpreparable[never] = new PreparationFailure("no room", IsFinal: true);
        engine.Unpreparable[later] = new PreparationFailure("it overlaps another patch", IsFinal: false);
        Heat(0x100, 0x200);
        var refused = Assert.IsType<JournalEvent.PatchRefused>(
            Assert.Single((await journal.ExpectMsgAsync<JournalProtocol.Record>(Limit)).Facts));
        Assert.Equal((0x100L, "no room"), (refused.SiteOffset, refused.Reason));
        Assert.Equal((IEnumerable<byte>)FakePatchEngine.PlanOf(never).Original, refused.Bytes);
        Heat(0x100, 0x200);
        await SettleAsync();
        Assert.Equal([never, later, later], engine.Asked);
    }

    [Fact(DisplayName = "A site that goes on to be hot during a transaction is looked at once after it")]
    public async Task Hot_all_the_time()
    {
        await OpenAsync();
        Heat(0x100);
        JournalProtocol.Intend intend = await IntendAsync();
        engine.Unpreparable[FakePatchEngine.Base + 0x200] = new PreparationFailure("it overlaps another patch", IsFinal: false);
        for (int round = 0; round < 5; round++)
        {
            Heat(0x200);
        }

        Committed(await CommitAsync(intend));
        await CompleteAsync();
        await SettleAsync();
        Assert.Equal([FakePatchEngine.Base + 0x100, FakePatchEngine.Base + 0x200], engine.Asked);
    }

    [Fact(DisplayName = "Without a journal the guest starts, and nothing is patched; with it, hot sites are patched as ever")]
    public async Task No_journal()
    {
        planner.Tell(new JournalProtocol.BecameUnavailable("the disk is full"), parent);
        await parent.ExpectMsgAsync<Ready>(Limit);
        Heat(0x100);
        await SettleAsync();
        Assert.False(journal.HasMessages);
        Assert.Empty(engine.Asked);

        planner.Tell(new JournalProtocol.BecameAvailable(JournalState.Empty), parent);
        Heat(0x100);
        Assert.Single((await IntendAsync()).Patches);
    }

    [Fact(DisplayName = "An intent that the journal does not take is given up: nothing is committed, and the reason is in the report")]
    public async Task Journal_fails()
    {
        await OpenAsync();
        Heat(0x100);
        JournalProtocol.Intend intend = await IntendAsync();
        planner.Tell(new JournalProtocol.JournalFailed(intend.RequestId, "the disk is full"), journal);
        await SettleAsync();
        Assert.False(coordinator.HasMessages);
        Assert.Equal("the disk is full", book.Summarize().Find(FakePatchEngine.Base + 0x100)?.Reason);
        Heat(0x100);
        Assert.Single((await IntendAsync()).Patches);
    }

    [Fact(DisplayName = "Sites that the user switched off stay off also when the journal comes too late for the start")]
    public async Task Disabled_sites()
    {
        planner.Tell(new JournalProtocol.BecameUnavailable("a server that does not answer"), parent);
        await parent.ExpectMsgAsync<Ready>(Limit);
        JournalState late = JournalState.Empty.Apply(new JournalEvent.SiteDisabled(0x102));
        planner.Tell(new JournalProtocol.BecameAvailable(late), parent);
        Heat(0x100, 0x200);
        Assert.Equal([0x200L], (await IntendAsync()).Patches.Select(patch => patch.Offset));
    }

    [Fact(DisplayName = "Patches of earlier runs are with the engine before the guest may start")]
    public async Task Replay()
    {
        JournaledPatch patch = JournaledPatch.Of(FakePatchEngine.PlanOf(FakePatchEngine.Base + 0x100), FakePatchEngine.Base);
        JournalState before = JournalState.Empty
            .Apply(new JournalEvent.PatchIntended(1, [patch]))
            .Apply(new JournalEvent.PatchApplied(1, [patch.Offset]));
        planner.Tell(new JournalProtocol.BecameAvailable(before), parent);
        await parent.ExpectMsgAsync<Ready>(Limit);
        Assert.Equal(FakePatchEngine.Base + 0x100, Assert.Single(engine.Replays).Window);
    }

    [Fact(DisplayName = "The guest may start also when the engine fails over the patches of earlier runs")]
    public async Task Replay_fails()
    {
        engine.FailingReplay = true;
        await EventFilter.Exception<InvalidOperationException>().ExpectOneAsync(Limit, () =>
        {
            planner.Tell(new JournalProtocol.BecameAvailable(JournalState.Empty), parent);
            return Task.CompletedTask;
        });
        await parent.ExpectMsgAsync<Ready>(Limit);

        // The successor asks for the journal's state, and does not replay again.
        var get = await journal.ExpectMsgAsync<JournalProtocol.GetState>(Limit);
        planner.Tell(new JournalProtocol.State(get.RequestId, JournalState.Empty), journal);
        Heat(0x100);
        Assert.Single((await IntendAsync()).Patches);
    }

    [Theory(DisplayName = "A patch that was taken back and cannot come again is planned anew when its site is hot")]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Cannot_come_back(bool isPrepared)
    {
        await PatchAsync(0x100);
        planner.Tell(new SetPatching(50, false), TestActor);
        QuiesceProtocol.Commit off = await CommitAsync();
        planner.Tell(new QuiesceProtocol.Committed(off.RequestId, 0, [], [], off.Reverts), coordinator);
        await ExpectMsgAsync(new PatchingSet(50, false, 1), Limit);

        if (!isPrepared)
        {
            engine.Unpreparable[FakePatchEngine.Base + 0x100] = new("it overlaps another patch", IsFinal: false);
        }

        planner.Tell(new SetPatching(51, true), TestActor);
        if (isPrepared)
        {
            QuiesceProtocol.Commit on = await CommitAsync(await IntendAsync());
            planner.Tell(
                new QuiesceProtocol.Committed(
                    on.RequestId, on.Transaction, [], [new QuiesceProtocol.FailedPatch(on.Patches[0].Plan, "the bytes changed")], []),
                coordinator);
            await CompleteAsync();
        }

        await ExpectMsgAsync(new PatchingSet(51, true, 0), Limit);
        Assert.Empty(book.Withdrawn);
        engine.Unpreparable.Clear();
        Heat(0x100);
        Assert.Equal([0x100L], (await IntendAsync()).Patches.Select(patch => patch.Offset));
    }

    [Fact(DisplayName = "Patching is switched off and on again; what comes back is not observed anew")]
    public async Task Off_and_on()
    {
        await PatchAsync(0x100);
        planner.Tell(new SetPatching(50, false), TestActor);
        QuiesceProtocol.Commit off = await CommitAsync();
        Assert.Single(off.Reverts);
        planner.Tell(new QuiesceProtocol.Committed(off.RequestId, 0, [], [], off.Reverts), coordinator);
        await ExpectMsgAsync(new PatchingSet(50, false, 1), Limit);
        Heat(0x200);
        await SettleAsync();
        Assert.False(journal.HasMessages);

        planner.Tell(new SetPatching(51, true), TestActor);
        Committed(await CommitAsync(await IntendAsync()));
        await ExpectMsgAsync(new PatchingSet(51, true, 1), Limit);
        await CompleteAsync();
        await SettleAsync();
        Assert.False(journal.HasMessages);
        Assert.Single(book.Standing);
    }

    [Fact(DisplayName = "Switching on without a journal is refused, and nothing has changed: patches would never come back")]
    public async Task On_without_a_journal()
    {
        await PatchAsync(0x100);
        planner.Tell(new SetPatching(50, false), TestActor);
        QuiesceProtocol.Commit off = await CommitAsync();
        planner.Tell(new QuiesceProtocol.Committed(off.RequestId, 0, [], [], off.Reverts), coordinator);
        await ExpectMsgAsync<PatchingSet>(Limit);
        planner.Tell(new JournalProtocol.BecameUnavailable("the disk is full"), parent);
        planner.Tell(new SetPatching(51, true), TestActor);
        await ExpectMsgAsync(new Refused(51, "the patch journal is not available"), Limit);

        planner.Tell(new JournalProtocol.BecameAvailable(JournalState.Empty), parent);
        planner.Tell(new SetPatching(52, true), TestActor);
        Committed(await CommitAsync(await IntendAsync()));
        await ExpectMsgAsync(new PatchingSet(52, true, 1), Limit);
    }

    [Fact(DisplayName = "What a failing writer had taken back is known to be taken back")]
    public async Task Half_switched_off()
    {
        await PatchAsync(0x100);
        planner.Tell(new SetPatching(50, false), TestActor);
        QuiesceProtocol.Commit off = await CommitAsync();
        planner.Tell(
            new QuiesceProtocol.Aborted(off.RequestId, off, "the writer failed: bug") { Reverted = off.Reverts }, coordinator);
        await ExpectMsgAsync(new Refused(50, "the writer failed: bug"), Limit);
        Assert.Empty(book.Standing);
        Assert.Single(book.Withdrawn);
    }

    [Fact(DisplayName = "A transaction of many patches stops the world several times, and the guest runs in between; its result is journaled at the end")]
    public async Task Parts()
    {
        await OpenAsync();
        Heat(0x100, 0x200, 0x300);
        QuiesceProtocol.Commit first = await CommitAsync(await IntendAsync());
        Assert.Equal([0x100L, 0x200], OffsetsOf(first.Patches.Select(patch => patch.Plan)));
        Committed(first);
        await SettleAsync();
        Assert.False(coordinator.HasMessages);
        Assert.False(journal.HasMessages);

        Time.Advance(TwoPerStop.BetweenStops);
        QuiesceProtocol.Commit second = await CommitAsync();
        Assert.Equal([0x300L], OffsetsOf(second.Patches.Select(patch => patch.Plan)));
        Assert.Equal(first.Transaction, second.Transaction);
        Assert.NotEqual(first.RequestId, second.RequestId);
        Committed(second);
        Assert.Equal([0x100L, 0x200, 0x300], (IEnumerable<long>)(await CompleteAsync()).Applied);
    }

    [Fact(DisplayName = "A transaction that is given up in the middle leaves what was applied, and journals both")]
    public async Task Given_up_in_the_middle()
    {
        await OpenAsync();
        Heat(0x100, 0x200, 0x300);
        Committed(await CommitAsync(await IntendAsync()));
        QuiesceProtocol.Commit second = await NextPartAsync();
        planner.Tell(new QuiesceProtocol.Aborted(second.RequestId, second, "vCPU 1 did not stop in time"), coordinator);
        JournalProtocol.Complete complete = await CompleteAsync();
        Assert.Equal([0x100L, 0x200], (IEnumerable<long>)complete.Applied);
        Assert.Equal(new JournalProtocol.AbortedPatch(0x300, "vCPU 1 did not stop in time"), Assert.Single(complete.Aborted));
        await SettleAsync();
        Assert.Equal([FakePatchEngine.Base + 0x300], engine.Discarded);
        Assert.Equal((2, 1), (book.Applied, book.Aborted));
    }

    [Fact(DisplayName = "Of a transaction that is given up early, nothing is left waiting")]
    public async Task Given_up_at_once()
    {
        await OpenAsync();
        Heat(0x100, 0x200, 0x300);
        QuiesceProtocol.Commit first = await CommitAsync(await IntendAsync());
        planner.Tell(new QuiesceProtocol.Aborted(first.RequestId, first, "vCPU 1 did not stop in time"), coordinator);
        Assert.Equal([0x100L, 0x200, 0x300], (await CompleteAsync()).Aborted.Select(aborted => aborted.Offset));
        await SettleAsync();
        Assert.Equal(3, engine.Discarded.Count);
    }

    [Fact(DisplayName = "Many patches are taken back in parts as well, and who asked is answered at the end")]
    public async Task Parts_taken_back()
    {
        await PatchAsync(0x100, 0x200, 0x300);
        planner.Tell(new SetPatching(50, false), TestActor);
        QuiesceProtocol.Commit first = await CommitAsync();
        Assert.Equal([0x100L, 0x200], OffsetsOf(first.Reverts));
        Committed(first);
        await SettleAsync();
        Assert.False(HasMessages);
        Time.Advance(TwoPerStop.BetweenStops);
        QuiesceProtocol.Commit second = await CommitAsync();
        Assert.Equal([0x300L], OffsetsOf(second.Reverts));
        Committed(second);
        await ExpectMsgAsync(new PatchingSet(50, false, 3), Limit);
        Assert.Empty(book.Standing);
    }

    [Fact(DisplayName = "Patching that cannot be switched off stays on, and what was taken back comes again with the next switch")]
    public async Task Not_switched_off()
    {
        await PatchAsync(0x100, 0x200, 0x300);
        planner.Tell(new SetPatching(50, false), TestActor);
        Committed(await CommitAsync());
        QuiesceProtocol.Commit second = await NextPartAsync();
        planner.Tell(new QuiesceProtocol.Aborted(second.RequestId, second, "vCPU 1 did not stop in time"), coordinator);
        await ExpectMsgAsync(new Refused(50, "vCPU 1 did not stop in time"), Limit);
        Assert.Equal([0x300L], OffsetsOf(book.Standing));

        planner.Tell(new SetPatching(51, true), TestActor);
        Committed(await CommitAsync(await IntendAsync()));
        await ExpectMsgAsync(new PatchingSet(51, true, 2), Limit);
        await CompleteAsync();

        // Rested, it looks at hot sites as before, whether or not a switch came in between.
        planner.Tell(new SetPatching(52, false), TestActor);
        QuiesceProtocol.Commit third = await CommitAsync();
        planner.Tell(new QuiesceProtocol.Aborted(third.RequestId, third, "vCPU 1 did not stop in time"), coordinator);
        await ExpectMsgAsync<Refused>(Limit);
        Time.Advance(TwoPerStop.FirstRest);
        engine.Unpatchable[FakePatchEngine.Base + 0x400] = new PlanResult.Refused("a branch leads into it", [0xf4]);
        Heat(0x400);
        await journal.ExpectMsgAsync<JournalProtocol.Record>(Limit);
    }

    [Fact(DisplayName = "A planner that fails between two parts of a transaction goes on with the next")]
    public async Task Fails_between_parts()
    {
        await OpenAsync();
        Heat(0x100, 0x200, 0x300);
        Committed(await CommitAsync(await IntendAsync()));
        await SettleAsync();
        await FailAsync();
        QuiesceProtocol.Commit second = await CommitAsync();
        Assert.Equal([0x300L], OffsetsOf(second.Patches.Select(patch => patch.Plan)));
        Committed(second);
        Assert.Equal([0x100L, 0x200, 0x300], (IEnumerable<long>)(await CompleteAsync()).Applied);
    }

    [Fact(DisplayName = "The end of a run waits for the transaction under way, and every other request is answered")]
    public async Task Stop_during_a_transaction()
    {
        await OpenAsync();
        Heat(0x100);
        JournalProtocol.Intend intend = await IntendAsync();
        planner.Tell(new SetPatching(50, false), TestActor);
        planner.Tell(new Stop(60), TestActor);
        planner.Tell(new SetPatching(51, false), TestActor);
        await ExpectMsgAsync(new Refused(50, "the run ends"), Limit);
        await ExpectMsgAsync(new Refused(51, "the run ends"), Limit);
        Heat(0x200);
        Committed(await CommitAsync(intend));
        var stopped = await ExpectMsgAsync<Stopped>(Limit);
        Assert.Equal((60L, 1), (stopped.RequestId, stopped.Summary.Applied));
        await CompleteAsync();
        await journal.ExpectMsgAsync<JournalProtocol.Record>(Limit);
        Assert.False(journal.HasMessages);
    }

    [Fact(DisplayName = "A planner that fails goes on with its transaction, wherever that is: nothing stays half journaled")]
    public async Task Fails_in_a_transaction()
    {
        await OpenAsync();
        Heat(0x100);
        JournalProtocol.Intend intend = await IntendAsync();
        await FailAsync();
        QuiesceProtocol.Commit commit = await CommitAsync(intend);
        await FailAsync();
        Committed(commit);
        Assert.Equal(0x100L, Assert.Single((await CompleteAsync()).Applied));
        Assert.Equal(1, book.Applied);
        await journal.ExpectMsgAsync<JournalProtocol.Record>(Limit);
        Heat(0x200);
        Assert.Single((await IntendAsync()).Patches);
    }

    [Fact(DisplayName = "A planner that fails remembers that patching is switched off, and who waits for that")]
    public async Task Fails_while_switching()
    {
        await OpenAsync();
        planner.Tell(new SetPatching(50, false), TestActor);
        QuiesceProtocol.Commit off = await CommitAsync();
        await FailAsync();
        planner.Tell(new QuiesceProtocol.Committed(off.RequestId, 0, [], [], []), coordinator);
        await ExpectMsgAsync(new PatchingSet(50, false, 0), Limit);
        await FailAsync();
        Heat(0x100);
        await SettleAsync();
        Assert.False(journal.HasMessages);
    }

    [Fact(DisplayName = "A request that the planner fails over is refused, not forgotten")]
    public async Task Fails_over_a_request()
    {
        await OpenAsync();
        engine.FailingNotices = 1;
        await EventFilter.Exception<InvalidOperationException>().ExpectOneAsync(Limit, () =>
        {
            planner.Tell(new SetPatching(50, false), TestActor);
            return Task.CompletedTask;
        });
        await ExpectMsgAsync(new Refused(50, "the planner failed"), Limit);
    }

    [Fact(DisplayName = "What happens to patches while the guest runs is noted in the interval of the settings")]
    public async Task Notices()
    {
        await OpenAsync();
        engine.Notice(new PatchNotice(FakePatchEngine.PlanOf(0x100), PatchNoticeKind.Replayed, ""));
        await AwaitConditionAsync(
            () =>
            {
                Time.Advance(Settings.Shipped.NoticeInterval);
                return Task.FromResult(book.Replayed == 1);
            },
            Limit,
            TimeSpan.FromMilliseconds(5));
    }

    private async Task OpenAsync()
    {
        planner.Tell(new JournalProtocol.BecameAvailable(JournalState.Empty), parent);
        await parent.ExpectMsgAsync<Ready>(Limit);
    }

    private void Heat(params IEnumerable<ulong> offsets) => planner.Tell(new HotSitesDetected(
        TimeSpan.FromSeconds(1),
        [.. offsets.Select(offset => new HotSite(FakePatchEngine.Base + offset, ExitKind.Privileged, 100, 100))]));

    private static IEnumerable<long> OffsetsOf(IEnumerable<PatchPlan> plans) => plans.Select(plan => (long)(plan.Window - FakePatchEngine.Base));

    private async Task PatchAsync(params IReadOnlyList<ulong> offsets)
    {
        await OpenAsync();
        Heat(offsets);
        JournalProtocol.Intend? intend = await IntendAsync();
        for (int done = 0; done < offsets.Count; done += TwoPerStop.PatchesPerStop)
        {
            Committed(await CommitAsync(intend));
            await SettleAsync();
            Time.Advance(TwoPerStop.BetweenStops);
            intend = null;
        }

        await CompleteAsync();
        await journal.ExpectMsgAsync<JournalProtocol.Record>(Limit);
    }

    private async Task<JournalProtocol.Intend> IntendAsync() => await journal.ExpectMsgAsync<JournalProtocol.Intend>(Limit);

    private async Task<JournalProtocol.Complete> CompleteAsync() => await journal.ExpectMsgAsync<JournalProtocol.Complete>(Limit);

    private async Task<QuiesceProtocol.Commit> CommitAsync(JournalProtocol.Intend? intend = null)
    {
        if (intend is not null)
        {
            planner.Tell(new JournalProtocol.Intended(intend.RequestId, 7), journal);
        }

        return await coordinator.ExpectMsgAsync<QuiesceProtocol.Commit>(Limit);
    }

    /// <summary>The next part of a transaction, when what was committed of it has been read.</summary>
    private async Task<QuiesceProtocol.Commit> NextPartAsync()
    {
        await SettleAsync();
        Time.Advance(TwoPerStop.BetweenStops);
        return await CommitAsync();
    }

    private void Committed(QuiesceProtocol.Commit commit) => planner.Tell(
        new QuiesceProtocol.Committed(
            commit.RequestId, commit.Transaction, [.. commit.Patches.Select(patch => patch.Plan)], [], commit.Reverts),
        coordinator);

    /// <summary>Until the planner has read all that it was sent.</summary>
    private async Task SettleAsync() => await planner.Ask<ActorIdentity>(new Identify(++settled), Limit);

    private async Task FailAsync()
    {
        await EventFilter.Exception<ActorKilledException>().ExpectOneAsync(Limit, () =>
        {
            planner.Tell(Kill.Instance);
            return Task.CompletedTask;
        });

        // As a journal does that has been available all along.
        var get = await journal.ExpectMsgAsync<JournalProtocol.GetState>(Limit);
        planner.Tell(new JournalProtocol.State(get.RequestId, JournalState.Empty), journal);
    }
}
