using System.Globalization;
using Microsoft.Data.Sqlite;

namespace Dmp.Actors.Specs.Journal;

/// <summary>What specs do to a journal's file behind its back.</summary>
internal static class SqliteFile
{
    public static long Count(string path, string table) =>
        Convert.ToInt64(Execute(path, $"SELECT count(*) FROM {table}"), CultureInfo.InvariantCulture);

    public static object? Execute(string path, string sql)
    {
        using var database = new SqliteConnection($"Data Source={path};Pooling=False");
        database.Open();
        using SqliteCommand command = database.CreateCommand();
#pragma warning disable CA2100 // Texts of specs.
        command.CommandText = sql;
#pragma warning restore CA2100
        return command.ExecuteScalar();
    }
}
