using System.Diagnostics;

namespace Dmp.Actors.Specs.Journal;

/// <summary>A PostgreSQL server that one spec has to itself, to stop it when it likes. Listens on a socket in its own folder
/// only.</summary>
internal sealed class PostgresCluster : IDisposable
{
    private const string Installed = "/usr/lib/postgresql";
    private readonly string programs;
    private readonly string folder;

    private PostgresCluster(string programs)
    {
        this.programs = programs;
        folder = Run("mktemp", "-d", "/tmp/dmp-postgres-XXXXXX").Trim();
        Run(Path.Combine(programs, "initdb"), "--auth=trust", "--username=dmp", "--no-sync", "--no-locale", "--pgdata", Data);
    }

    public string Connection => $"Host={folder};Username=dmp;Database=postgres";

    private string Data => $"{folder}/data";

    // The server refuses to run as root.
    private static string[] AsSomebody => Environment.UserName == "root" ? ["runuser", "-u", "postgres", "--"] : [];

    public static PostgresCluster Create()
    {
        string? programs = Directory.Exists(Installed)
            ? Directory.GetDirectories(Installed).Select(version => Path.Combine(version, "bin"))
                .FirstOrDefault(bin => File.Exists(Path.Combine(bin, "initdb")))
            : null;
        Skip.If(programs is null, "PostgreSQL is not installed");
        return new PostgresCluster(programs!);
    }

    public void Start() => Run(
        Path.Combine(programs, "pg_ctl"), "start", "--wait", "--pgdata", Data, "--log", $"{folder}/log", "--options", $"-k {folder} -c listen_addresses=''");

    /// <summary>As if the power had failed.</summary>
    public void Stop() => Run(Path.Combine(programs, "pg_ctl"), "stop", "--wait", "--mode", "immediate", "--pgdata", Data);

    public void Dispose()
    {
        if (File.Exists($"{Data}/postmaster.pid"))
        {
            Stop();
        }

        Directory.Delete(folder, recursive: true);
    }

    private static string Run(params string[] command)
    {
        string[] all = [.. AsSomebody, .. command];
        var start = new ProcessStartInfo(all[0], all[1..]) { RedirectStandardOutput = true, WorkingDirectory = "/" };
        using var process = Process.Start(start)!;

        // A server that was started has the pipe as well, and would keep it open.
        bool isServer = command.Contains("start");
        string output = isServer ? string.Empty : process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0, $"{string.Join(' ', command)}: exit code {process.ExitCode} {output}");
        return output;
    }
}
