using Dmp.Actors.Journal;
using Dmp.Kvm;
using Npgsql;

namespace Dmp.Actors.Specs.Journal;

public class JournalConnectionSpecs
{
    [Theory(DisplayName = "Without a word the journal is a file in the user's data folder")]
    [InlineData("/data", "/home/user", "/data/dmp/patches.db")]
    [InlineData(null, "/home/user", "/home/user/.local/share/dmp/patches.db")]
    [InlineData("", "/home/user", "/home/user/.local/share/dmp/patches.db")]
    [InlineData("relative", "/home/user", "/home/user/.local/share/dmp/patches.db")]
    public void Default_place(string? data, string home, string expected) =>
        Assert.Equal(expected, Assert.IsType<JournalConnection.SqliteFile>(Parse(string.Empty, data, home)).Path);

    [Theory(DisplayName = "A path is an SQLite file")]
    [InlineData("/var/lib/dmp/patches.db", "/var/lib/dmp/patches.db")]
    [InlineData("~/patches.db", "/home/user/patches.db")]
    [InlineData("/odd;name=1.db", "/odd;name=1.db")]
    public void Paths(string text, string expected) =>
        Assert.Equal(expected, Assert.IsType<JournalConnection.SqliteFile>(Parse(text)).Path);

    [Fact(DisplayName = "A relative path is relative to the working directory")]
    public void Relative_paths() =>
        Assert.Equal(Path.GetFullPath("patches.db"), Assert.IsType<JournalConnection.SqliteFile>(Parse("patches.db")).Path);

    [Theory(DisplayName = "PostgreSQL is named as its own tools name it")]
    [InlineData("postgres://me:s%40crect@db.example:5433/patches", "db.example", 5433, "patches", "me", "s@crect")]
    [InlineData("postgresql://me@db.example/patches?sslmode=require", "db.example", 5432, "patches", "me", null)]
    [InlineData("postgres:///patches?host=/run/postgresql", "/run/postgresql", 5432, "patches", null, null)]
    [InlineData("Host=db.example;Database=patches;Username=me;Password=s@crect", "db.example", 5432, "patches", "me", "s@crect")]
    [InlineData("Server=db.example;Port=5433", "db.example", 5433, null, null, null)]
    public void Postgres(string text, string host, int port, string? database, string? user, string? password)
    {
        var server = Assert.IsType<JournalConnection.PostgreSql>(Parse(text));
        var builder = new NpgsqlConnectionStringBuilder(server.ConnectionString);
        Assert.Equal((host, port, database, user, password), (builder.Host, builder.Port, builder.Database, builder.Username, builder.Password));
        Assert.InRange(builder.Timeout, 1, 5);
        Assert.DoesNotContain("crect", server.Description + server, StringComparison.Ordinal);
    }

    [Theory(DisplayName = "What is neither is refused in one line, without a password in it")]
    [InlineData(":memory:")]
    [InlineData("mysql://me:s3crect@db.example/patches")]
    [InlineData("postgres://me:s3crect@db.example:notaport/patches")]
    [InlineData("postgres:///patches")]
    [InlineData("postgres://me:s3crect@db.example/patches?nonsense=1")]
    [InlineData("Host=db.example;Password=s3crect;Nonsense=1")]
    [InlineData("Host=;Password=s3crect")]
    [InlineData("Host=db.example;Password=s3crect;Port=many")]
    public void Refused(string text)
    {
        var error = Assert.Throws<UnusableInputException>(() => Parse(text));
        Assert.DoesNotContain('\n', error.Message);
        Assert.DoesNotContain("s3crect", error.Message, StringComparison.Ordinal);
    }

    private static JournalConnection Parse(string text, string? data = "/data", string home = "/home/user") =>
        JournalConnection.Parse(text, name => name switch { "XDG_DATA_HOME" => data, "HOME" => home, _ => null });
}
