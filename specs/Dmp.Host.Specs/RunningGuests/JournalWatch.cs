using System.Collections.Immutable;
using Microsoft.Data.Sqlite;

namespace Dmp.Host.Specs.RunningGuests;

/// <summary>
/// Looks on from outside while dmp writes to its journal, an SQLite file: whatever another connection can read has been committed. What
/// dmp takes for acknowledged it was told after the commit, so that all of it has been committed too.
/// </summary>
internal sealed class JournalWatch : IDisposable
{
    private readonly string file;
    private readonly FileSystemWatcher watcher;
    private readonly AutoResetEvent written = new(initialState: false);
    private readonly Thread reader;
    private readonly Func<JournalWatch, bool> isTime;
    private Action? then;
    private int writes;
    private int writesBefore;
    private volatile bool over;

    /// <summary>Watches.</summary>
    /// <param name="file">The journal; its folder is there.</param>
    /// <param name="isTime">Asked after writes to the journal.</param>
    public JournalWatch(string file, Func<JournalWatch, bool> isTime)
    {
        this.file = file;
        this.isTime = isTime;

        // SQLite's write-ahead log: every commit goes there, while looking on changes the files beside it.
        watcher = new FileSystemWatcher(Path.GetDirectoryName(file)!, $"{Path.GetFileName(file)}-wal")
        {
            NotifyFilter = NotifyFilters.LastWrite | NotifyFilters.Size,
        };
        watcher.Changed += (_, _) =>
        {
            // Reading takes longer than writing: several writes may be one look.
            _ = Interlocked.Increment(ref writes);
            _ = written.Set();
        };
        reader = new Thread(Look) { IsBackground = true };
    }

    /// <summary>Writes to the journal so far, as far as they were told one by one.</summary>
    public int Writes => Volatile.Read(ref writes);

    /// <summary>Those since the first event was seen: before it tables are made.</summary>
    public int WritesSinceFirst => Committed.IsEmpty ? 0 : Writes - writesBefore;

    /// <summary>The events that were committed when it was looked last, in their order: manifest and content.</summary>
    public ImmutableArray<string> Committed { get; private set; } = [];

    /// <summary>Whether it was time.</summary>
    public bool Acted { get; private set; }

    /// <summary>Begins.</summary>
    /// <param name="action">Done once, when it is time.</param>
    public void Start(Action action)
    {
        then = action;
        reader.Start();
        watcher.EnableRaisingEvents = true;
    }

    /// <summary>The committed events of a journal; none where they cannot be read just now.</summary>
    /// <param name="file">The journal.</param>
    public static ImmutableArray<string> Read(string file)
    {
        var events = ImmutableArray.CreateBuilder<string>();
        try
        {
            // Who may only read neither recovers nor empties the log of a process that was killed: that is left to dmp.
            using var database = new SqliteConnection(
                new SqliteConnectionStringBuilder { DataSource = file, Mode = SqliteOpenMode.ReadOnly, Pooling = false }.ConnectionString);
            database.Open();
            using SqliteCommand command = database.CreateCommand();
            command.CommandText = "SELECT manifest, hex(message) FROM dmp_patch_events ORDER BY sequence_number";
            using SqliteDataReader reader = command.ExecuteReader();
            while (reader.Read())
            {
                events.Add($"{reader.GetString(0)} {reader.GetString(1)}");
            }
        }
        catch (SqliteException)
        {
            // Not there yet, or being made.
            return [];
        }

        return events.ToImmutable();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        watcher.Dispose();
        Finish();
        written.Dispose();
    }

    /// <summary>Ends looking; what was seen stands.</summary>
    public void Finish()
    {
        over = true;
        _ = written.Set();
        if (reader.IsAlive)
        {
            reader.Join();
        }
    }

    private void Look()
    {
        while (!over && !Acted)
        {
            _ = written.WaitOne();
            if (Read(file) is { IsEmpty: false } events)
            {
                writesBefore = Committed.IsEmpty ? Writes : writesBefore;
                Committed = events;
            }

            if (!over && isTime(this))
            {
                Acted = true;
                then?.Invoke();
            }
        }
    }
}
