using System.Globalization;
using Dmp.Kvm;
using Npgsql;

namespace Dmp.Actors.Journal;

/// <summary>Where a patch journal is kept. Parsing one touches nothing.</summary>
public abstract record JournalConnection
{
    // A server that does not answer must not keep anybody waiting for longer than the journal may take to open.
    private const int SecondsToConnect = 4;
    private const int SecondsToAnswer = 5;
    private const string FileInDataFolder = "dmp/patches.db";
    private static readonly string[] HostKeys = ["Host", "Server"];
    private static readonly string[] UriSchemes = ["postgres://", "postgresql://"];

    private JournalConnection()
    {
    }

    /// <summary>The journal's name in messages; never with a password.</summary>
    public abstract string Description { get; }

    /// <summary>What the user says: a path, or how to reach PostgreSQL ("postgres://user@host/database",
    /// "Host=...;Database=...").</summary>
    /// <param name="text">The text; empty for the default, a file in the user's data folder.</param>
    /// <exception cref="UnusableInputException">The text is neither.</exception>
    public static JournalConnection Parse(string text) => Parse(text, Environment.GetEnvironmentVariable);

    /// <summary>As <see cref="Parse(string)"/>, with another environment.</summary>
    /// <param name="text">The text.</param>
    /// <param name="environment">Values of environment variables; null for those that are not set.</param>
    /// <exception cref="UnusableInputException">The text is neither.</exception>
    internal static JournalConnection Parse(string text, Func<string, string?> environment)
    {
        ArgumentNullException.ThrowIfNull(text);
        string trimmed = text.Trim();
        if (trimmed.Length == 0)
        {
            return new SqliteFile(Path.Combine(DataFolder(environment), FileInDataFolder));
        }

        if (UriSchemes.Any(scheme => trimmed.StartsWith(scheme, StringComparison.OrdinalIgnoreCase)))
        {
            return FromUri(trimmed);
        }

        if (LooksLikeKeywords(trimmed))
        {
            return FromKeywords(trimmed);
        }

        if (trimmed.Contains("://", StringComparison.Ordinal))
        {
            // Not the text itself: it may hold a password.
            throw new UnusableInputException("the journal's address is none that dmp knows; give a file's path or postgres://...");
        }

        if (trimmed.StartsWith(":memory:", StringComparison.OrdinalIgnoreCase)
            || trimmed.StartsWith("file:", StringComparison.OrdinalIgnoreCase)
            || trimmed.Contains('\0', StringComparison.Ordinal))
        {
            throw new UnusableInputException($"cannot keep the journal in {trimmed.Replace('\0', ' ')}: it is not a file's path");
        }

        string path = trimmed.StartsWith("~/", StringComparison.Ordinal) ? Path.Combine(Home(environment), trimmed[2..]) : trimmed;
        return new SqliteFile(Path.GetFullPath(path));
    }

    private static bool LooksLikeKeywords(string text)
    {
        int equals = text.IndexOf('=', StringComparison.Ordinal);
        return equals > 0 && text.Split(';').Select(part => part.Split('=')[0].Trim())
            .Any(key => HostKeys.Contains(key, StringComparer.OrdinalIgnoreCase));
    }

    private static PostgreSql FromKeywords(string text)
    {
        try
        {
            return FromBuilder(new NpgsqlConnectionStringBuilder(text));
        }
        catch (Exception e) when (IsMalformed(e))
        {
            // Not the text itself: it may hold a password.
            throw new UnusableInputException($"the journal's PostgreSQL connection is not valid ({OneLine(e.Message)})");
        }
    }

    // What the builder throws at keys and values that it does not take.
    private static bool IsMalformed(Exception failure) => failure
        is ArgumentException or FormatException or KeyNotFoundException or InvalidCastException or OverflowException;

    private static PostgreSql FromUri(string text)
    {
        const string Malformed = "the journal's PostgreSQL connection is not valid; write postgres://USER:PASSWORD@HOST:PORT/DATABASE";
        if (!Uri.TryCreate(text, UriKind.Absolute, out Uri? uri))
        {
            throw new UnusableInputException(Malformed);
        }

        var builder = new NpgsqlConnectionStringBuilder();
        try
        {
            string[] user = uri.UserInfo.Split(':', 2);
            if (user[0].Length > 0)
            {
                builder.Username = Uri.UnescapeDataString(user[0]);
            }

            if (user.Length > 1)
            {
                builder.Password = Uri.UnescapeDataString(user[1]);
            }

            builder.Host = uri.Host.Length > 0 ? Uri.UnescapeDataString(uri.Host) : null;
            if (uri.Port > 0)
            {
                builder.Port = uri.Port;
            }

            string database = Uri.UnescapeDataString(uri.AbsolutePath.TrimStart('/'));
            if (database.Length > 0)
            {
                builder.Database = database;
            }

            foreach (string option in uri.Query.TrimStart('?').Split('&', StringSplitOptions.RemoveEmptyEntries))
            {
                string[] pair = option.Split('=', 2);
                string key = Uri.UnescapeDataString(pair[0]);
                builder[key == "sslmode" ? "SSL Mode" : key] = pair.Length > 1 ? Uri.UnescapeDataString(pair[1]) : "true";
            }
        }
        catch (Exception e) when (IsMalformed(e))
        {
            throw new UnusableInputException($"{Malformed} ({OneLine(e.Message)})");
        }

        return FromBuilder(builder);
    }

    private static PostgreSql FromBuilder(NpgsqlConnectionStringBuilder builder)
    {
        if (string.IsNullOrEmpty(builder.Host))
        {
            throw new UnusableInputException("the journal's PostgreSQL connection names no host");
        }

        builder.Timeout = Math.Min(builder.Timeout, SecondsToConnect);
        builder.CommandTimeout = Math.Min(builder.CommandTimeout, SecondsToAnswer);
        builder.ApplicationName ??= string.Create(
            CultureInfo.InvariantCulture, $"dmp, process {Environment.ProcessId} on {Environment.MachineName}");
        string database = builder.Database ?? builder.Username ?? "(default)";
        string place = string.Create(CultureInfo.InvariantCulture, $"PostgreSQL at {builder.Host}:{builder.Port}, database {database}");
        return new PostgreSql(builder.ConnectionString, place);
    }

    private static string DataFolder(Func<string, string?> environment)
    {
        // The specification of base directories wants relative paths ignored.
        string? data = environment("XDG_DATA_HOME");
        return Path.IsPathRooted(data) ? data! : Path.Combine(Home(environment), ".local", "share");
    }

    private static string Home(Func<string, string?> environment)
    {
        string? home = environment("HOME");
        return string.IsNullOrEmpty(home) ? Environment.GetFolderPath(Environment.SpecialFolder.UserProfile) : home;
    }

    private static string OneLine(string text) => text.ReplaceLineEndings(" ");

    /// <summary>A file of SQLite's.</summary>
    /// <param name="Path">Its absolute path.</param>
    public sealed record SqliteFile(string Path) : JournalConnection
    {
        /// <inheritdoc/>
        public override string Description => Path;
    }

    /// <summary>A database on a PostgreSQL server.</summary>
    /// <param name="ConnectionString">For Npgsql; may hold a password.</param>
    /// <param name="Place">Its name in messages.</param>
    public sealed record PostgreSql(string ConnectionString, string Place) : JournalConnection
    {
        /// <inheritdoc/>
        public override string Description => Place;

        /// <summary>Without the password.</summary>
        public override string ToString() => $"PostgreSql {{ {Place} }}";
    }
}
