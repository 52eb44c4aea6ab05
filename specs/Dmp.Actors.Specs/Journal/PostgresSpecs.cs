using Dmp.Actors.Journal;
using Dmp.Kvm;
using Npgsql;
using static Dmp.Actors.Journal.JournalProtocol;

namespace Dmp.Actors.Specs.Journal;

/// <summary>The journal on a real PostgreSQL server: the one that DMP_SPEC_POSTGRES names, or one of the spec's own.</summary>
public sealed class PostgresSpecs
{
    // A kernel of its own for each spec: the server is there for all of them.
    private readonly string kernel = Guid.NewGuid().ToString("N");

    private static string Server
    {
        get
        {
            string? server = Environment.GetEnvironmentVariable("DMP_SPEC_POSTGRES");
            Skip.If(string.IsNullOrEmpty(server), "DMP_SPEC_POSTGRES does not name a PostgreSQL server");
            return server!;
        }
    }

    [SkippableFact(DisplayName = "What PostgreSQL acknowledged is there after the journal was opened again")]
    public async Task Survives()
    {
        ControlSettings often = Journals.With("dmp.journal.snapshot-every = 5");
        JournalState before;
        await using (var journal = new OpenJournal(Server, kernel, often))
        {
            for (int patch = 0; patch < 10; patch++)
            {
                await journal.ApplyAsync(patch * 0x10);
            }

            await journal.IntendAsync(Journals.Patch(-0x10));
            await journal.RecordAsync(new JournalEvent.PatchReverted(0x10, "asked to"));
            before = await journal.StateAsync();
        }

        await using (var again = new OpenJournal(Server, kernel, often))
        {
            JournalState after = await again.StateAsync();
            Assert.Equal(PatchStatus.Aborted, after.Entries[-0x10].Status);
            Assert.Equal(before.Entries.Remove(-0x10), after.Entries.Remove(-0x10));
        }

        await using var other = new OpenJournal(Server, $"{kernel}-other", often);
        Assert.Equal(JournalState.Empty, await other.StateAsync());
    }

    [SkippableFact(DisplayName = "Two machines with one kernel do not share its patches; with two kernels they share the server")]
    public async Task One_user_of_a_kernel()
    {
        await using var journal = new OpenJournal(Server, kernel);
        await journal.ApplyAsync(0x10);
        await using (var second = new OpenJournal(Server, kernel))
        {
            string reason = await second.FailureAsync();
            Assert.Contains($"the patches of this kernel are in use by dmp, process {Environment.ProcessId} on", reason, StringComparison.Ordinal);
        }

        await using (var other = new OpenJournal(Server, $"{kernel}-other"))
        {
            await other.ApplyAsync(0x20);
        }

        Assert.True(JournalCheck.TryOpen(JournalConnection.Parse(Server), out string message), message);
        await journal.ApplyAsync(0x20);
    }

    [SkippableFact(DisplayName = "The user's switches are kept by PostgreSQL too, and read while a machine runs")]
    public async Task Editing_offline()
    {
        var connection = JournalConnection.Parse(Server);
        await using (var journal = new OpenJournal(Server, kernel))
        {
            await journal.ApplyAsync(0x10);
            Assert.Equal(SiteState.Applied, Assert.Single((await JournalReader.ReadAsync(connection, Journals.Default))[kernel].Sites).State);
            var error = await Assert.ThrowsAsync<UnusableInputException>(
                () => JournalEditor.SwitchAsync(connection, kernel, 0x10, disabled: true, Journals.Default));
            Assert.Contains("in use by dmp, process", error.Message, StringComparison.Ordinal);
        }

        await JournalEditor.SwitchAsync(connection, kernel, 0x10, disabled: true, Journals.Default);
        Assert.Equal(SiteState.Disabled, Assert.Single((await JournalReader.ReadAsync(connection, Journals.Default))[kernel].Sites).State);
    }

    [SkippableFact(DisplayName = "A server that stops in the middle costs no acknowledged event, and the journal goes on when it is back")]
    public async Task Stopped_in_the_middle()
    {
        using var cluster = PostgresCluster.Create();
        cluster.Start();
        await using var journal = new OpenJournal(cluster.Connection, kernel, Journals.With("dmp.journal.first-retry = 100ms"));
        await journal.ApplyAsync(0x10, 0x20);
        var open = Assert.IsType<Intended>(await journal.IntendAsync(Journals.Patch(0x30)));
        await journal.NoticeAsync<BecameAvailable>();
        cluster.Stop();

        string reason = Assert.IsType<JournalFailed>(await journal.CompleteAsync(open.Transaction, [0x30])).Reason;
        Assert.Contains("PostgreSQL at ", reason, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', reason);
        Assert.DoesNotContain("Exception", reason, StringComparison.Ordinal);
        Assert.IsType<JournalFailed>(await journal.IntendAsync(Journals.Patch(0x40)));

        cluster.Start();
        await journal.NoticeAsync<BecameAvailable>();
        Assert.IsType<Intended>(await journal.IntendAsync(Journals.Patch(0x40)));
        JournalState state = await journal.StateAsync();
        Assert.Equal(
            [PatchStatus.Applied, PatchStatus.Applied, PatchStatus.Applied, PatchStatus.Intended],
            state.Entries.Values.Select(entry => entry.Status));
        await journal.NoticeAsync<LoggedLine>();
        Assert.Equal(2, journal.Logged.Count);
        Assert.Contains(reason, journal.Logged.First(), StringComparison.Ordinal);
        Assert.EndsWith("can be used again", journal.Logged.Last(), StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "A server that is not there is said to be not there, before the guest runs and beside it")]
    public async Task Refused_at_start()
    {
        using var cluster = PostgresCluster.Create();
        await ExpectUnusableAsync(cluster.Connection, "the server does not answer");
        await ExpectUnusableAsync("Host=127.0.0.1;Port=1;Username=dmp", "the server does not answer");
    }

    [SkippableFact(DisplayName = "A database, a user or a right that is missing is said in the server's words")]
    public async Task Refused_by_the_server()
    {
        string nowhere = new NpgsqlConnectionStringBuilder(Server) { Database = "dmp_nowhere" }.ConnectionString;
        await ExpectUnusableAsync(nowhere, "the server says: database \"dmp_nowhere\" does not exist");

        // May connect, but neither create the tables nor use those that are there.
        string guest = $"guest_{kernel}";
        await using var administrator = NpgsqlDataSource.Create(Server);
        await using (NpgsqlCommand create = administrator.CreateCommand($"CREATE ROLE {guest} LOGIN"))
        {
            await create.ExecuteNonQueryAsync();
        }

        await using var journal = new OpenJournal(new NpgsqlConnectionStringBuilder(Server) { Username = guest }.ConnectionString, kernel);
        string reason = await journal.FailureAsync();
        Assert.Contains("the server says: permission denied", reason, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', reason);
    }

    private async Task ExpectUnusableAsync(string text, string expected)
    {
        var connection = JournalConnection.Parse(text);
        Assert.False(JournalCheck.TryOpen(connection, out string message));
        Assert.StartsWith("cannot open the patch journal (PostgreSQL at ", message, StringComparison.Ordinal);
        Assert.Contains(expected, message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', message);

        await using var journal = new OpenJournal(connection, kernel);
        Assert.Equal(message, await journal.FailureAsync());
        Assert.Equal(message, (await journal.NoticeAsync<BecameUnavailable>()).Reason);
        Assert.Single(journal.Logged);
    }
}
