using Dmp.Actors.Journal;
using Dmp.Kvm;
using Microsoft.Data.Sqlite;
using static Dmp.Actors.Journal.JournalProtocol;

namespace Dmp.Actors.Specs.Journal;

/// <summary>What cannot be used is said in one line, the requests are answered, and the guest would run on.</summary>
public sealed class JournalFailureSpecs : IDisposable
{
    private const int HeaderBytes = 100;
    private const int DamagedFiles = 25;

    private readonly TemporaryFolder folder = new();

    private string File => folder.File("patches.db");

    public void Dispose() => folder.Dispose();

    [Fact(DisplayName = "A folder that does not exist is created")]
    public async Task Missing_folder()
    {
        await using var journal = new OpenJournal(folder.File("a/b/patches.db"));
        await journal.ApplyAsync(0x10);
    }

    [Fact(DisplayName = "A folder that cannot be created is named")]
    public async Task Impossible_folder()
    {
        await System.IO.File.WriteAllTextAsync(folder.File("file"), string.Empty);
        await ExpectUnusableAsync(folder.File("file/patches.db"), "make it writable, or choose another file with --journal");
        await ExpectUnusableAsync("/proc/dmp/patches.db", "choose another file");
    }

    [Fact(DisplayName = "A directory in place of the file is named")]
    public async Task Directory_in_place()
    {
        Directory.CreateDirectory(File);
        await ExpectUnusableAsync(File, "it is a directory");
    }

    [Fact(DisplayName = "A file that is something else is left as it is")]
    public async Task Something_else()
    {
        await System.IO.File.WriteAllTextAsync(File, string.Concat(Enumerable.Repeat("This is a letter. ", 500)));
        byte[] before = await System.IO.File.ReadAllBytesAsync(File);
        await ExpectUnusableAsync(File, "the file is no SQLite database, or is damaged");
        Assert.Equal([File], Directory.GetFiles(folder.Path));
        Assert.Equal(before, await System.IO.File.ReadAllBytesAsync(File));
    }

    [Fact(DisplayName = "The database of another program is left as it is")]
    public async Task Another_program()
    {
        SqliteFile.Execute(File, "CREATE TABLE letters (text)");
        byte[] before = await System.IO.File.ReadAllBytesAsync(File);
        await ExpectUnusableAsync(File, "the file is a database of another program");
        Assert.Equal([File], Directory.GetFiles(folder.Path));
        Assert.Equal(before, await System.IO.File.ReadAllBytesAsync(File));
    }

    [Fact(DisplayName = "A file that a newer version wrote is not touched")]
    public async Task Newer_version()
    {
        await WriteAsync();
        SqliteFile.Execute(File, "PRAGMA user_version = 99");
        await ExpectUnusableAsync(File, "a newer version of dmp wrote it");
    }

    [Fact(DisplayName = "A truncated file is damaged")]
    public async Task Truncated()
    {
        await WriteAsync();
        using (FileStream stream = System.IO.File.OpenWrite(File))
        {
            stream.SetLength(stream.Length / 2);
        }

        await ExpectUnusableAsync(File, "is damaged");
    }

    [Fact(DisplayName = "Random bytes anywhere in the file lead to one line, or to no harm")]
    public async Task Random_bytes()
    {
        await WriteAsync();
        byte[] whole = await System.IO.File.ReadAllBytesAsync(File);
        var random = new Random(7);
        int failed = 0;
        for (int round = 0; round < DamagedFiles; round++)
        {
            byte[] damaged = [.. whole];
            random.NextBytes(damaged.AsSpan(random.Next(HeaderBytes, damaged.Length - 64), 64));
            await System.IO.File.WriteAllBytesAsync(File, damaged);
            await using var journal = new OpenJournal(File);
            object answer = await journal.AskAsync(id => new GetState(id));
            if (answer is JournalFailed { Reason: var reason })
            {
                failed++;
                ExpectOneLine(reason);
                Assert.IsType<JournalFailed>(await journal.IntendAsync(Journals.Patch(0x1000)));
            }
        }

        Assert.InRange(failed, 1, DamagedFiles);
    }

    [Theory(DisplayName = "An event that cannot be read keeps nobody from running")]
    [InlineData("UPDATE dmp_patch_events SET message = x'ffffffffff' WHERE sequence_number = 3", "a record of the kind \"in\" is damaged")]
    [InlineData("UPDATE dmp_patch_events SET manifest = 'zz' WHERE sequence_number = 3", "the kind \"zz\", which this version of dmp does not know")]
    [InlineData("UPDATE dmp_patch_events SET identifier = 4711 WHERE sequence_number = 3", "4711")]
    public async Task Unreadable_event(string damage, string expected)
    {
        await WriteAsync();
        SqliteFile.Execute(File, damage);
        await using var journal = new OpenJournal(File);
        string reason = await journal.FailureAsync();
        Assert.StartsWith($"cannot open the patch journal ({File}): ", reason, StringComparison.Ordinal);
        Assert.Contains(expected, reason, StringComparison.Ordinal);
        ExpectOneLine(reason);
        Assert.IsType<JournalFailed>(await journal.IntendAsync(Journals.Patch(0x1000)));
        Assert.Equal(reason, (await journal.NoticeAsync<BecameUnavailable>()).Reason);
        Assert.Equal($"{reason}. The guest runs on; no further code is patched", Assert.Single(journal.Logged));
    }

    [Fact(DisplayName = "Tables that cannot be used are said at once, in the database's words")]
    public async Task Unusable_tables()
    {
        await WriteAsync();
        SqliteFile.Execute(File, "DROP TABLE dmp_patch_events; CREATE TABLE dmp_patch_events (other)");
        await using var journal = new OpenJournal(File);
        string reason = await journal.FailureAsync();
        Assert.Contains("column", reason, StringComparison.Ordinal);
        ExpectOneLine(reason);
    }

    [Fact(DisplayName = "A file that another program holds is waited for, but not for ever")]
    public async Task Held_by_another_program()
    {
        await WriteAsync();
        using var holder = new SqliteConnection($"Data Source={File};Pooling=False");
        holder.Open();
        using SqliteTransaction transaction = holder.BeginTransaction(deferred: false);
        await ExpectUnusableAsync(File, "another program holds the file");
    }

    [Fact(DisplayName = "What happened while the journal was away is stored when it is back, and its open transactions stay open")]
    public async Task Away_and_back()
    {
        await using var journal = new OpenJournal(File, settings: Journals.With("dmp.journal.first-retry = 50ms"));
        var known = Assert.IsType<Intended>(await journal.IntendAsync(Journals.Patch(0x10), Journals.Patch(0x20)));
        await journal.NoticeAsync<BecameAvailable>();

        // While the file is held nothing can be written, nor opened again.
        using (var holder = new SqliteConnection($"Data Source={File};Pooling=False"))
        {
            holder.Open();
            using SqliteTransaction transaction = holder.BeginTransaction(deferred: false);
            string reason = Assert.IsType<JournalFailed>(await journal.CompleteAsync(known.Transaction, [0x10])).Reason;
            Assert.StartsWith($"cannot write to the patch journal ({File}): another program holds the file", reason, StringComparison.Ordinal);
            ExpectOneLine(reason);
            Assert.Equal(reason, (await journal.NoticeAsync<BecameUnavailable>()).Reason);
        }

        await journal.NoticeAsync<BecameAvailable>();
        Assert.Empty(Assert.IsType<Completed>(await journal.CompleteAsync(known.Transaction, [0x20])).Open);
        JournalState state = await journal.StateAsync();
        Assert.Equal([PatchStatus.Applied, PatchStatus.Applied], state.Entries.Values.Select(entry => entry.Status));
    }

    [Fact(DisplayName = "A journal that comes back and fails again at once is one outage: it is said once, and that it is over when it is")]
    public async Task Flapping()
    {
        await using var journal = new OpenJournal(File, settings: Journals.With("dmp.journal { first-retry = 50ms, longest-retry = 2s }"));
        await journal.ApplyAsync(0x10);
        await journal.NoticeAsync<BecameAvailable>();
        SqliteFile.Execute(File, "CREATE TRIGGER away BEFORE INSERT ON dmp_patch_events BEGIN SELECT RAISE(ABORT, 'injected by the spec'); END");
        for (int outages = 0; outages < 5; outages++)
        {
            // It can be opened, but not written to.
            Assert.IsType<JournalFailed>(await journal.IntendAsync(Journals.Patch(0x20)));
            await journal.NoticeAsync<BecameUnavailable>();
            await journal.NoticeAsync<BecameAvailable>();
        }

        SqliteFile.Execute(File, "DROP TRIGGER away");
        while (!(await journal.NoticeAsync<LoggedLine>()).Text.EndsWith("can be used again", StringComparison.Ordinal))
        {
        }

        Assert.Equal(2, journal.Logged.Count);
    }

    [Fact(DisplayName = "An intent that was not acknowledged is aborted when the journal is back")]
    public async Task Unacknowledged_intents()
    {
        await using var journal = new OpenJournal(File, settings: Journals.With("dmp.journal.first-retry = 50ms"));
        await journal.ApplyAsync(0x10);
        await journal.NoticeAsync<BecameAvailable>();
        SqliteFile.Execute(File, "CREATE TRIGGER away BEFORE INSERT ON dmp_patch_events BEGIN SELECT RAISE(ABORT, 'injected by the spec'); END");
        string reason = Assert.IsType<JournalFailed>(await journal.IntendAsync(Journals.Patch(0x20))).Reason;
        Assert.StartsWith($"cannot write to the patch journal ({File}): ", reason, StringComparison.Ordinal);
        Assert.Contains("injected by the spec", reason, StringComparison.Ordinal);
        ExpectOneLine(reason);
        SqliteFile.Execute(File, "DROP TRIGGER away");
        await journal.NoticeAsync<BecameAvailable>();
        Assert.DoesNotContain((await journal.StateAsync()).Entries.Values, entry => entry.Status == PatchStatus.Intended);
        await journal.ApplyAsync(0x20);
    }

    private static void ExpectOneLine(string reason)
    {
        Assert.DoesNotContain('\n', reason);
        Assert.DoesNotContain("   at ", reason, StringComparison.Ordinal);
        Assert.DoesNotContain("Exception", reason, StringComparison.Ordinal);
        Assert.InRange(reason.Length, 1, 400);
    }

    private async Task WriteAsync()
    {
        await using var journal = new OpenJournal(File, settings: Journals.With("dmp.journal.snapshot-every = 0"));
        for (int patch = 0; patch < 40; patch++)
        {
            await journal.ApplyAsync(patch * 0x10);
        }
    }

    private static async Task ExpectUnusableAsync(string path, string expected)
    {
        var connection = JournalConnection.Parse(path);
        Assert.False(JournalCheck.TryOpen(connection, out string message));
        Assert.StartsWith($"cannot open the patch journal ({path}): ", message, StringComparison.Ordinal);
        Assert.Contains(expected, message, StringComparison.Ordinal);
        ExpectOneLine(message);

        await using var journal = new OpenJournal(connection);
        Assert.Equal(message, await journal.FailureAsync());
        Assert.Equal(message, Assert.IsType<JournalFailed>(await journal.IntendAsync(Journals.Patch(0x1000))).Reason);
        Assert.Equal(message, (await journal.NoticeAsync<BecameUnavailable>()).Reason);
        Assert.Equal($"{message}. The guest runs on; no further code is patched", Assert.Single(journal.Logged));
        if (System.IO.File.Exists(path))
        {
            var error = await Assert.ThrowsAsync<UnusableInputException>(() => JournalReader.ReadAsync(connection, Journals.Default));
            ExpectOneLine(error.Message);
        }
    }
}
