using System.Buffers.Binary;
using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using Microsoft.Data.Sqlite;
using Npgsql;

namespace Dmp.Actors.Journal;

/// <summary>
/// A journal's database, checked, and locked for one user at a time. Opening blocks, for a few seconds at most.
/// </summary>
internal sealed class JournalStore : IDisposable
{
    /// <summary>Marks an SQLite file as a patch journal: "DMPJ".</summary>
    private const int ApplicationId = 0x444d504a;

    /// <summary>Counted up when the tables change so that an older Dmp could not use them.</summary>
    private const int FormatVersion = 1;

    private readonly IDisposable userLock;

    private JournalStore(IDisposable userLock) => this.userLock = userLock;

    /// <summary>Opens a journal.</summary>
    /// <param name="connection">Where it is.</param>
    /// <param name="kernelId">The kernel whose patches are to be written; null to write none. A file is locked in any case and
    /// as a whole; a server can serve many machines, so that there only the kernel's part is locked.</param>
    /// <exception cref="JournalInUseException">Somebody else uses it.</exception>
    /// <exception cref="JournalFormatException">It is something else.</exception>
    /// <exception cref="Exception">What the database or the file system throws; see <see cref="JournalFailure"/>.</exception>
    public static JournalStore Open(JournalConnection connection, string? kernelId) => connection switch
    {
        JournalConnection.SqliteFile file => Open(file),
        JournalConnection.PostgreSql server => Open(server, kernelId),
        _ => throw new ArgumentOutOfRangeException(nameof(connection)),
    };

    /// <inheritdoc/>
    public void Dispose() => userLock.Dispose();

    private static JournalStore Open(JournalConnection.SqliteFile file)
    {
        if (Directory.Exists(file.Path))
        {
            throw new IOException("it is a directory");
        }

        Directory.CreateDirectory(Path.GetDirectoryName(file.Path)!);
        string lockPath = file.Path + ".lock";
        if (!File.Exists(lockPath))
        {
            // Nobody has ever locked it: what is no journal gets no lock file beside it either. Where there is a lock file the database
            // may be open, also in this process, and closing a file would release SQLite's own locks on it.
            CheckHeader(file.Path);
        }

        LockFile userLock = LockFile.Take(lockPath);
        try
        {
            Check(file);
            return new JournalStore(userLock);
        }
        catch
        {
            userLock.Dispose();
            throw;
        }
    }

    /// <summary>What the file's first page says without SQLite, which changes what stands beside a file it opens.</summary>
    private static void CheckHeader(string path)
    {
        const int UserVersionAt = 60;
        const int ApplicationIdAt = 68;
        const int PageTypeAt = 100; // of the page that holds the list of tables
        const int CellsAt = 103;
        const int HeaderLength = 105;
        const byte InteriorPage = 5;
        if (!File.Exists(path))
        {
            return;
        }

        Span<byte> header = stackalloc byte[HeaderLength];
        using FileStream stream = new(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete, bufferSize: 0);
        int length = stream.ReadAtLeast(header, HeaderLength, throwOnEndOfStream: false);
        if (length == 0)
        {
            return;
        }

        if (length < HeaderLength || !header.StartsWith("SQLite format 3\0"u8))
        {
            throw new JournalFormatException("the file is no SQLite database, or is damaged");
        }

        bool hasTables = header[PageTypeAt] == InteriorPage || BinaryPrimitives.ReadUInt16BigEndian(header[CellsAt..]) > 0;
        Refuse(
            BinaryPrimitives.ReadInt32BigEndian(header[ApplicationIdAt..]),
            BinaryPrimitives.ReadInt32BigEndian(header[UserVersionAt..]),
            hasTables);
    }

    private static void Refuse(long application, long version, bool hasTables)
    {
        if (application != ApplicationId && (application != 0 || hasTables))
        {
            throw new JournalFormatException("the file is a database of another program");
        }

        if (version > FormatVersion)
        {
            throw new JournalFormatException("a newer version of dmp wrote it");
        }
    }

    private static void Check(JournalConnection.SqliteFile file)
    {
        bool fresh = !File.Exists(file.Path) || new FileInfo(file.Path).Length == 0;
        var text = new SqliteConnectionStringBuilder(JournalConfiguration.ConnectionString(file, pooled: false))
        {
            Mode = SqliteOpenMode.ReadWriteCreate,
        };
        using var database = new SqliteConnection(text.ConnectionString);
        database.Open();
        if (!fresh)
        {
            CheckContent(database);
        }

        // Stays in the file. Synchronous is FULL by default: each commit is on the disk before it is acknowledged.
        Read(database, "PRAGMA journal_mode = WAL");

        // Writes the header also when nothing changes: what cannot be written shows here and not at the first patch.
        using SqliteTransaction transaction = database.BeginTransaction(deferred: false);
        Read(database, string.Create(CultureInfo.InvariantCulture, $"PRAGMA application_id = {ApplicationId}"));
        Read(database, string.Create(CultureInfo.InvariantCulture, $"PRAGMA user_version = {FormatVersion}"));
        transaction.Commit();
    }

    private static void CheckContent(SqliteConnection database)
    {
        long application = Convert.ToInt64(Read(database, "PRAGMA application_id"), CultureInfo.InvariantCulture);
        long version = Convert.ToInt64(Read(database, "PRAGMA user_version"), CultureInfo.InvariantCulture);
        long tables = Convert.ToInt64(Read(database, "SELECT count(*) FROM sqlite_master"), CultureInfo.InvariantCulture);
        Refuse(application, version, tables > 0);
        string verdict = Convert.ToString(Read(database, "PRAGMA quick_check(1)"), CultureInfo.InvariantCulture) ?? string.Empty;
        if (verdict != "ok")
        {
            throw new JournalFormatException($"the file is damaged ({verdict.ReplaceLineEndings(" ")})");
        }
    }

    private static object? Read(SqliteConnection database, string sql)
    {
        using SqliteCommand command = database.CreateCommand();
#pragma warning disable CA2100 // All texts are constants of this class.
        command.CommandText = sql;
#pragma warning restore CA2100
        return command.ExecuteScalar();
    }

    private static JournalStore Open(JournalConnection.PostgreSql server, string? kernelId)
    {
        // The lock is the session's: a connection of its own, held open, and never back into a pool with the lock on it.
        var text = new NpgsqlConnectionStringBuilder(server.ConnectionString) { Pooling = false };
        var session = new NpgsqlConnection(text.ConnectionString);
        try
        {
            session.Open();
            if (kernelId is null || TryLock(session, LockKey(kernelId)))
            {
                return new JournalStore(session);
            }

            throw new JournalInUseException($"the patches of this kernel are in use by {Holder(session, LockKey(kernelId))}");
        }
        catch
        {
            session.Dispose();
            throw;
        }
    }

    private static long LockKey(string kernelId) =>
        BinaryPrimitives.ReadInt64LittleEndian(SHA256.HashData(Encoding.UTF8.GetBytes(PatchJournal.PersistenceIdOf(kernelId))));

    private static bool TryLock(NpgsqlConnection session, long key)
    {
        using var take = new NpgsqlCommand("SELECT pg_try_advisory_lock(@key)", session);
        take.Parameters.AddWithValue("key", key);
        return take.ExecuteScalar() is true;
    }

    private static string Holder(NpgsqlConnection session, long key)
    {
        using var ask = new NpgsqlCommand(
            """
            SELECT activity.application_name FROM pg_locks AS locks JOIN pg_stat_activity AS activity USING (pid)
            WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1
              AND (locks.classid::bigint << 32) | locks.objid::bigint = @key
              AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            LIMIT 1
            """,
            session);
        ask.Parameters.AddWithValue("key", key);
        return ask.ExecuteScalar() as string is { Length: > 0 } name ? name : "another process";
    }
}
