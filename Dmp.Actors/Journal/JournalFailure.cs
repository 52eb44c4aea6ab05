using System.Net.Sockets;
using Akka.Persistence;
using Microsoft.Data.Sqlite;
using Npgsql;

namespace Dmp.Actors.Journal;

/// <summary>Why a journal cannot be used.</summary>
/// <param name="Line">One line for the user: what was attempted on what, why it failed, what to do.</param>
/// <param name="MayPass">Whether trying again later can help without anybody repairing the journal.</param>
internal sealed record JournalFailure(string Line, bool MayPass)
{
    // Some libraries explain at length what only a developer can follow.
    private const int LongestCause = 160;
    private const int SqliteBusy = 5;
    private const int SqliteLocked = 6;
    private const int SqliteReadOnly = 8;
    private const int SqliteInput = 10;
    private const int SqliteCorrupt = 11;
    private const int SqliteFull = 13;
    private const int SqliteCannotOpen = 14;
    private const int SqliteNotADatabase = 26;
    private const int SqliteInputNoIndex = 4874; // SQLITE_IOERR_SHMSIZE: the write-ahead log's index cannot grow

    /// <summary>Explains an exception.</summary>
    /// <param name="attempted">What was attempted: "open", "read", "write to".</param>
    /// <param name="connection">On what.</param>
    /// <param name="failure">What was thrown, however deep the cause lies in it.</param>
    public static JournalFailure Of(string attempted, JournalConnection connection, Exception failure)
    {
        (string why, string remedy, bool mayPass) = Causes(failure)
            .Select(cause => Explain(cause, connection))
            .FirstOrDefault(known => known is not null)
            ?? (Causes(failure).Last().Message, Elsewhere(connection), true);
        return new JournalFailure($"cannot {attempted} the patch journal ({connection.Description}): {OneLine(why)}; {remedy}", mayPass);
    }

    /// <summary>Something that took too long.</summary>
    /// <param name="attempted">What was attempted.</param>
    /// <param name="connection">On what.</param>
    /// <param name="limit">How long was waited.</param>
    public static JournalFailure TooSlow(string attempted, JournalConnection connection, TimeSpan limit) => new(
        FormattableString.Invariant($"cannot {attempted} the patch journal ({connection.Description}): no answer within ")
        + FormattableString.Invariant($"{limit.TotalSeconds} s; {Elsewhere(connection)}"),
        MayPass: true);

    private static (string Why, string Remedy, bool MayPass)? Explain(Exception cause, JournalConnection connection) => cause switch
    {
        JournalInUseException inUse => (inUse.Message, "end that one, or give this one a journal of its own with --journal", true),
        JournalFormatException format => (format.Message, Aside(connection), false),
        SqliteException sqlite => Explain(sqlite, connection),
        PostgresException postgres =>
            ($"the server says: {postgres.MessageText}", "see to it there, or choose another one with --journal", true),
        NpgsqlException { InnerException: SocketException or TimeoutException or IOException } npgsql =>
            NoAnswer(npgsql.InnerException!),
        SocketException => NoAnswer(cause),
        TimeoutException or RecoveryTimedOutException => ("it does not answer in time", Elsewhere(connection), true),
        NpgsqlException npgsql => (npgsql.Message, "see to the server, or choose another journal with --journal", true),
        UnauthorizedAccessException => (cause.InnerException?.Message ?? "no permission", Elsewhere(connection), true),
        IOException io => (io.Message, Elsewhere(connection), true),
        _ => null,
    };

    private static (string Why, string Remedy, bool MayPass) NoAnswer(Exception cause) =>
        ($"the server does not answer ({cause.Message})", "start it, or choose another journal with --journal", true);

    private static (string Why, string Remedy, bool MayPass) Explain(SqliteException failure, JournalConnection connection) =>
        failure.SqliteErrorCode switch
        {
            SqliteInput when failure.SqliteExtendedErrorCode == SqliteInputNoIndex => ("the disk is full", "free some space", true),
            SqliteFull => ("the disk is full", "free some space", true),
            SqliteReadOnly => ("it is read-only", Elsewhere(connection), true),
            SqliteCorrupt => ("the file is damaged", Aside(connection), false),
            SqliteNotADatabase => ("the file is no SQLite database, or is damaged", Aside(connection), false),
            SqliteBusy or SqliteLocked =>
                ("another program holds the file", "end that one, or choose another file with --journal", true),
            SqliteCannotOpen => ("the file cannot be opened", Elsewhere(connection), true),
            SqliteInput => ("the file cannot be read or written", "see to its disk, or choose another file with --journal", true),
            _ => (failure.Message, Aside(connection), true),
        };

    private static string Aside(JournalConnection connection) => connection is JournalConnection.SqliteFile
        ? "move the file away and a new one is begun, or choose another with --journal"
        : "choose another database with --journal";

    private static string Elsewhere(JournalConnection connection) => connection is JournalConnection.SqliteFile
        ? "make it writable, or choose another file with --journal"
        : "choose another journal with --journal";

    private static IEnumerable<Exception> Causes(Exception failure)
    {
        for (Exception? cause = failure; cause is not null; cause = cause.InnerException)
        {
            yield return cause is AggregateException { InnerExceptions.Count: 1 } one ? one.InnerExceptions[0] : cause;
        }
    }

    private static string OneLine(string text)
    {
        string line = text.ReplaceLineEndings(" ").TrimEnd('.', ' ');
        return line.Length <= LongestCause ? line : $"{line[..LongestCause]}...";
    }
}
