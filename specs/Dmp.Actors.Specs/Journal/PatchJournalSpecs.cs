using System.Collections.Immutable;
using Dmp.Actors.Journal;
using Dmp.Kvm;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;
using static Dmp.Actors.Journal.JournalProtocol;

namespace Dmp.Actors.Specs.Journal;

/// <summary>The journal on real SQLite files.</summary>
public sealed class PatchJournalSpecs : IDisposable
{
    private readonly TemporaryFolder folder = new();

    private string File => folder.File("patches.db");

    public void Dispose() => folder.Dispose();

    [Fact(DisplayName = "What was acknowledged is there after the journal was opened again")]
    public async Task Survives()
    {
        JournalState before;
        await using (var journal = new OpenJournal(File))
        {
            Assert.Equal(1, Assert.IsType<Intended>(await journal.IntendAsync(Journals.Patch(0x10), Journals.Patch(-0x20))).Transaction);
            var completed = Assert.IsType<Completed>(await journal.CompleteAsync(1, [0x10], new AbortedPatch(-0x20, "other bytes")));
            Assert.Empty(completed.Open);
            Assert.IsType<Recorded>(await journal.RecordAsync(
                new JournalEvent.PatchRefused(0x40, [0x0f, 0x20, 0xd8], "a branch targets it", ExitKind.Privileged),
                new JournalEvent.PatchObserved(0x10, 1000, TimeSpan.FromSeconds(2))));
            before = await journal.StateAsync();
        }

        await using var again = new OpenJournal(File);
        JournalState after = await again.StateAsync();
        Assert.Equal(before, after);
        Assert.Equal(PatchStatus.Applied, after.Entries[0x10].Status);
        Assert.Equal(500, after.Entries[0x10].ExitsPerSecondBefore);
        Assert.Equal("other bytes", after.Entries[-0x20].Reason);
        Assert.Equal([Journals.Patch(0x10)], after.Replayable([Journals.Pushf]).Patches.ToArray());
        Assert.Equal([SiteState.Aborted, SiteState.Applied, SiteState.Refused], after.Sites.Select(site => site.State));
    }

    [Fact(DisplayName = "Every commit is on the disk before it is acknowledged")]
    public void Commits_are_synchronous()
    {
        const long Full = 2;
        Assert.True(JournalCheck.TryOpen(JournalConnection.Parse(File), out _));
        Assert.Equal("wal", SqliteFile.Execute(File, "PRAGMA journal_mode"));
        Assert.Equal(Full, SqliteFile.Execute(File, "PRAGMA synchronous"));
    }

    [Fact(DisplayName = "Another kernel finds nothing to replay")]
    public async Task Kernels_are_apart()
    {
        await using (var journal = new OpenJournal(File))
        {
            await journal.ApplyAsync(0x10);
        }

        await using var other = new OpenJournal(File, kernel: "another");
        Assert.Equal(JournalState.Empty, await other.StateAsync());
    }

    [Fact(DisplayName = "An intent that nobody completed is aborted by the next start, once")]
    public async Task Unfinished_intents_are_resolved()
    {
        await using (var journal = new OpenJournal(File))
        {
            await journal.IntendAsync(Journals.Patch(0x10), Journals.Patch(0x20));
            var completed = Assert.IsType<Completed>(await journal.CompleteAsync(1, [0x20]));
            Assert.Equal([0x10L], completed.Open.ToArray());
        }

        JournalState first;
        await using (var journal = new OpenJournal(File))
        {
            first = await journal.StateAsync();
        }

        Assert.Equal(PatchStatus.Aborted, first.Entries[0x10].Status);
        Assert.Equal("the VMM ended before it was applied", first.Entries[0x10].Reason);
        Assert.Equal([Journals.Patch(0x20)], first.Replayable([Journals.Pushf]).Patches.ToArray());
        await using var again = new OpenJournal(File);
        Assert.Equal(first, await again.StateAsync());
    }

    [Fact(DisplayName = "A request that contradicts the journal fails and stores nothing")]
    public async Task Contradictions_fail()
    {
        await using var journal = new OpenJournal(File);
        Assert.IsType<JournalFailed>(await journal.IntendAsync());
        Assert.IsType<JournalFailed>(await journal.IntendAsync(Journals.Patch(1), Journals.Patch(1)));
        Assert.IsType<JournalFailed>(await journal.CompleteAsync(7, [0x10]));
        Assert.Equal(JournalState.Empty, await journal.StateAsync());

        await journal.IntendAsync(Journals.Patch(0x10));
        JournalState open = await journal.StateAsync();
        Assert.Contains("+0x10", Assert.IsType<JournalFailed>(await journal.IntendAsync(Journals.Patch(0x10))).Reason, StringComparison.Ordinal);
        Assert.IsType<JournalFailed>(await journal.CompleteAsync(1, [0x10], new AbortedPatch(0x10, "both")));
        Assert.Equal(open, await journal.StateAsync());
    }

    [Fact(DisplayName = "Recovery from a snapshot and events equals recovery from events")]
    public async Task Snapshots_change_nothing()
    {
        ControlSettings often = Journals.With("dmp.journal.snapshot-every = 5");
        JournalState before;
        await using (var journal = new OpenJournal(File, settings: often))
        {
            for (int patch = 0; patch < 12; patch++)
            {
                await journal.ApplyAsync(patch * 0x10);
            }

            await journal.RecordAsync(new JournalEvent.SiteDisabled(0x20), new JournalEvent.PatchReverted(0x30, "asked to"));
            before = await journal.StateAsync();
        }

        Assert.True(SqliteFile.Count(File, "dmp_patch_snapshots") > 0);
        await using (var journal = new OpenJournal(File, settings: often))
        {
            Assert.Equal(before, await journal.StateAsync());
        }

        SqliteFile.Execute(File, "DELETE FROM dmp_patch_snapshots");
        await using var without = new OpenJournal(File, settings: often);
        Assert.Equal(before, await without.StateAsync());
    }

    [Fact(DisplayName = "A damaged snapshot is passed over, for all events are there")]
    public async Task Damaged_snapshot()
    {
        ControlSettings often = Journals.With("dmp.journal.snapshot-every = 2");
        JournalState before;
        await using (var journal = new OpenJournal(File, settings: often))
        {
            await journal.ApplyAsync(0x10);
            await journal.ApplyAsync(0x20);
            before = await journal.StateAsync();
        }

        Assert.True(SqliteFile.Count(File, "dmp_patch_snapshots") > 0);
        SqliteFile.Execute(File, "UPDATE dmp_patch_snapshots SET snapshot = x'ffffffffff'");
        await using var again = new OpenJournal(File, settings: often);
        Assert.Equal(before, await again.StateAsync());
    }

    [Fact(DisplayName = "What the journal knows already is not stored again")]
    public async Task Known_facts_are_not_stored()
    {
        var refused = new JournalEvent.PatchRefused(0x40, [0xf4], "no room", ExitKind.Silent);
        await using (var journal = new OpenJournal(File))
        {
            for (int time = 0; time < 3; time++)
            {
                Assert.IsType<Recorded>(await journal.RecordAsync(refused, refused, new JournalEvent.SiteEnabled(1)));
            }
        }

        Assert.Equal(1, SqliteFile.Count(File, "dmp_patch_events"));
    }

    [Fact(DisplayName = "The user's switches are set and read while no machine runs")]
    public async Task Editing_offline()
    {
        await using (var journal = new OpenJournal(File))
        {
            await journal.ApplyAsync(0x10, 0x20);
            await journal.IntendAsync(Journals.Patch(0x30));
        }

        await using (var other = new OpenJournal(File, kernel: "another"))
        {
            await other.ApplyAsync(0x50);
        }

        var connection = JournalConnection.Parse(File);
        await JournalEditor.SwitchAsync(connection, Journals.Kernel, 0x10, disabled: true, Journals.Default);
        ImmutableSortedDictionary<string, JournalState> kernels = await JournalReader.ReadAsync(connection, Journals.Default);
        Assert.Equal([Journals.Kernel, "another"], kernels.Keys);
        JournalState state = kernels[Journals.Kernel];
        Assert.Equal([SiteState.Disabled, SiteState.Applied, SiteState.Aborted], state.Sites.Select(site => site.State));
        Assert.Equal([Journals.Patch(0x20)], state.Replayable([Journals.Pushf]).Patches.ToArray());

        await JournalEditor.SwitchAsync(connection, Journals.Kernel, 0x10, disabled: false, Journals.Default);
        state = (await JournalReader.ReadAsync(connection, Journals.Default))[Journals.Kernel];
        Assert.Equal(2, state.Replayable([Journals.Pushf]).Patches.Length);
        Assert.Equal([0x10L, 0x20L], state.Replayable([new TemplateUse("pushf", 2)]).PlanAgain.ToArray());
    }

    [Fact(DisplayName = "The history of a site has its own events only, and when they were stored")]
    public async Task History_of_a_site()
    {
        DateTime before = DateTime.UtcNow;
        await using (var journal = new OpenJournal(File))
        {
            await journal.ApplyAsync(0x10, 0x20);
            await journal.RecordAsync(new JournalEvent.SiteRetired(0x20, "overwritten"), new JournalEvent.SiteDisabled(0x12));
            await journal.IntendAsync(Journals.Patch(0x10));
        }

        KernelHistory kernel = (await JournalReader.ReadHistoriesAsync(JournalConnection.Parse(File), Journals.Default))[Journals.Kernel];
        Assert.Equal(
            [typeof(JournalEvent.PatchIntended), typeof(JournalEvent.PatchApplied), typeof(JournalEvent.SiteDisabled), typeof(JournalEvent.PatchIntended)],
            kernel.Of(0x10).Select(recorded => recorded.Event.GetType()));
        Assert.Contains(kernel.Of(0x20), recorded => recorded.Event is JournalEvent.SiteRetired);
        Assert.Empty(kernel.Of(0x30));
        Assert.All(kernel.Events, recorded => Assert.InRange(recorded.At, before.AddSeconds(-1), DateTime.UtcNow));
        Assert.Equal(SiteState.Disabled, kernel.State.Sites.Single(site => site.SiteOffset == 0x10).State);
    }

    [Fact(DisplayName = "Nobody reads or changes a file that a machine uses")]
    public async Task One_user_at_a_time()
    {
        await using var journal = new OpenJournal(File);
        await journal.ApplyAsync(0x10);
        var connection = JournalConnection.Parse(File);
        string expected = $"it is in use by process {Environment.ProcessId}";
        Assert.False(JournalCheck.TryOpen(connection, out string message));
        Assert.Contains(expected, message, StringComparison.Ordinal);
        var read = await Assert.ThrowsAsync<UnusableInputException>(() => JournalReader.ReadAsync(connection, Journals.Default));
        Assert.Contains(expected, read.Message, StringComparison.Ordinal);
        var edit = await Assert.ThrowsAsync<UnusableInputException>(
            () => JournalEditor.SwitchAsync(connection, Journals.Kernel, 0x10, disabled: true, Journals.Default));
        Assert.Contains(expected, edit.Message, StringComparison.Ordinal);
        await using var second = new OpenJournal(File);
        Assert.Contains(expected, await second.FailureAsync(), StringComparison.Ordinal);
        await journal.ApplyAsync(0x20);
    }

    [Fact(DisplayName = "There is nothing to read where no journal was ever kept")]
    public async Task Nothing_to_read()
    {
        var error = await Assert.ThrowsAsync<UnusableInputException>(
            () => JournalReader.ReadAsync(JournalConnection.Parse(File), Journals.Default));
        Assert.Contains(File, error.Message, StringComparison.Ordinal);
        Assert.False(System.IO.File.Exists(File));

        Assert.True(JournalCheck.TryOpen(JournalConnection.Parse(File), out _));
        Assert.Empty(await JournalReader.ReadAsync(JournalConnection.Parse(File), Journals.Default));
    }

    [Fact(DisplayName = "A journal that is closed while it opens gives its lock back")]
    public async Task Closed_while_opening()
    {
        await using var journal = new OpenJournal(File);
        Task<object> state = journal.AskAsync(id => new GetState(id));
        Assert.IsType<Closed>(await journal.AskAsync(id => new Close(id)));
        Assert.IsType<JournalFailed>(await state);
        Assert.True(JournalCheck.TryOpen(JournalConnection.Parse(File), out string message), message);
    }

    [Fact(DisplayName = "Every request to a closed journal fails, and closing again is answered")]
    public async Task Closed_journal()
    {
        await using var journal = new OpenJournal(File);
        await journal.ApplyAsync(0x10);
        Assert.IsType<Closed>(await journal.AskAsync(id => new Close(id)));
        Assert.IsType<JournalFailed>(await journal.IntendAsync(Journals.Patch(0x20)));
        Assert.IsType<Closed>(await journal.AskAsync(id => new Close(id)));
        Assert.True(JournalCheck.TryOpen(JournalConnection.Parse(File), out _));
    }
}
