using System.Diagnostics;
using System.Globalization;

namespace Dmp.Actors.Specs.Journal;

/// <summary><see cref="JournalWriter"/> in a process of its own.</summary>
internal sealed class WriterProcess : IDisposable
{
    private readonly Process process;

    private WriterProcess(ProcessStartInfo start)
    {
        start.RedirectStandardOutput = true;
        start.RedirectStandardError = true;
        process = Process.Start(start)!;
        Errors = process.StandardError.ReadToEndAsync();
    }

    public Task<string> Errors { get; }

    private static string Dotnet => Path.GetFileNameWithoutExtension(Environment.ProcessPath) == "dotnet" ? Environment.ProcessPath! : "dotnet";

    private static string[] Command => [Dotnet, "exec", typeof(JournalWriter).Assembly.Location];

    public static WriterProcess Start(string journal, long first, int count)
    {
        string[] command = Command;
        return new WriterProcess(new ProcessStartInfo(command[0], [.. command[1..], journal, Text(first), Text(count)]));
    }

    /// <summary>Starts the writer in a mount namespace of its own: what is mounted there goes with the process, and nobody else
    /// sees it.</summary>
    /// <param name="prepare">Shell text that mounts; "$1" is the folder.</param>
    /// <param name="folder">The folder.</param>
    /// <param name="arguments">Of the writer.</param>
    public static WriterProcess StartWithMounts(string prepare, string folder, params string[] arguments)
    {
        string? namespaces = new[] { "-m", "-rm" }.FirstOrDefault(option => Succeeds("unshare", option, "mount", "-t", "tmpfs", "tmpfs", folder));
        Skip.If(namespaces is null, "this machine does not let the specs mount anything");
        string script = $"set -e; {prepare}; shift; exec \"$@\"";
        return new WriterProcess(new ProcessStartInfo("unshare", [namespaces!, "sh", "-c", script, "sh", folder, .. Command, .. arguments]));
    }

    public static bool Succeeds(string program, params string[] arguments)
    {
        try
        {
            using var process = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
            process.StandardOutput.ReadToEnd();
            process.WaitForExit();
            return process.ExitCode == 0;
        }
        catch (System.ComponentModel.Win32Exception)
        {
            return false;
        }
    }

    public async Task<string?> LineAsync() => await process.StandardOutput.ReadLineAsync();

    public async Task<string[]> LinesAsync()
    {
        var lines = new List<string>();
        while (await LineAsync() is { } line)
        {
            lines.Add(line);
        }

        return [.. lines];
    }

    /// <summary>As kill -9 does.</summary>
    public async Task KillAsync()
    {
        process.Kill();
        await process.WaitForExitAsync();
    }

    public void Dispose()
    {
        if (!process.HasExited)
        {
            process.Kill(entireProcessTree: true);
        }

        process.Dispose();
    }

    private static string Text(long number) => number.ToString(CultureInfo.InvariantCulture);
}
