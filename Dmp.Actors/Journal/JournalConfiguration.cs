using System.Text;
using Akka.Configuration;
using Microsoft.Data.Sqlite;

namespace Dmp.Actors.Journal;

/// <summary>The configuration of an actor system that keeps a journal.</summary>
internal static class JournalConfiguration
{
    // How long SQLite waits for another process's transaction, in seconds.
    private const int SecondsToWaitForLocks = 4;

    /// <summary>SQLite's connection string for the file.</summary>
    /// <param name="file">The file.</param>
    /// <param name="pooled">Whether connections are kept open when they are not used.</param>
    public static string ConnectionString(JournalConnection.SqliteFile file, bool pooled) => new SqliteConnectionStringBuilder
    {
        DataSource = file.Path,
        Mode = SqliteOpenMode.ReadWrite,
        DefaultTimeout = SecondsToWaitForLocks,
        Pooling = pooled,
    }.ConnectionString;

    /// <summary>The settings file, completed with where this journal is kept. Nothing is written to a log: every failure
    /// reaches the journal's own actors, who say it in one line, while Akka's plugins log each with a stack trace, some of them
    /// several times. Errors go to whoever subscribes to them (see <see cref="JournalSession.Start"/>).</summary>
    /// <param name="connection">Where the journal is kept.</param>
    /// <param name="settings">The settings file.</param>
    public static Config For(JournalConnection connection, ControlSettings settings)
    {
        (string provider, string text) = connection switch
        {
            JournalConnection.SqliteFile file => ("SQLite.MS", ConnectionString(file, pooled: true)),
            JournalConnection.PostgreSql server => ("PostgreSQL.15", server.ConnectionString),
            _ => throw new ArgumentOutOfRangeException(nameof(connection)),
        };
        string quoted = Quote(text);
        return ConfigurationFactory.ParseString($$"""
            akka.loglevel = ERROR
            akka.loggers = []
            akka.stdout-loglevel = OFF
            akka.persistence.journal.sql.provider-name = "{{provider}}"
            akka.persistence.journal.sql.connection-string = {{quoted}}
            akka.persistence.snapshot-store.sql.provider-name = "{{provider}}"
            akka.persistence.snapshot-store.sql.connection-string = {{quoted}}
            akka.persistence.query.journal.sql.provider-name = "{{provider}}"
            akka.persistence.query.journal.sql.connection-string = {{quoted}}
            """).WithFallback(settings.Configuration);
    }

    private static string Quote(string text)
    {
        var quoted = new StringBuilder("\"");
        foreach (char character in text)
        {
            quoted.Append(character is '"' or '\\' ? $"\\{character}" : character.ToString());
        }

        return quoted.Append('"').ToString();
    }
}
