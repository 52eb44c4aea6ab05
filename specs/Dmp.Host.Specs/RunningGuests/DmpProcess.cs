using System.Diagnostics;
using System.Globalization;
using System.Text;

namespace Dmp.Host.Specs.RunningGuests;

/// <summary>A finished dmp.</summary>
/// <param name="ExitCode">Its exit code.</param>
/// <param name="Output">Its stdout: the guest's console.</param>
/// <param name="Error">Its stderr: ours.</param>
internal sealed record DmpResult(int ExitCode, string Output, string Error)
{
    /// <summary>All there is to know, for a spec that fails.</summary>
    public override string ToString() => $"exit code {ExitCode}\n--- stderr\n{Error}\n--- the console's end\n{Output[^Math.Min(Output.Length, 6000)..]}";

    /// <summary>Fails the spec, with all there is to know.</summary>
    public void ShouldExitWith(int code) => Assert.True(ExitCode == code, $"expected exit code {code}: {this}");

    /// <summary>Lines in which a Linux kernel complains.</summary>
    public IEnumerable<string> Complaints() => Output.Split('\n').Where(line =>
        line.Contains("WARNING:", StringComparison.Ordinal)
        || line.Contains("BUG:", StringComparison.Ordinal)
        || line.Contains("kernel BUG at", StringComparison.Ordinal)
        || line.Contains("Oops", StringComparison.Ordinal)
        || line.Contains("Call Trace", StringComparison.Ordinal));
}

/// <summary>Runs dmp as a process of its own: real exit codes, and memory that is only its own.</summary>
internal static class DmpProcess
{
    private static readonly TimeSpan Longest = TimeSpan.FromMinutes(6);

    /// <summary>Runs it to its end.</summary>
    /// <param name="arguments">The command line.</param>
    /// <param name="onLine">Called with each line of the console, while dmp runs.</param>
    /// <param name="onStart">Called when it has been started.</param>
    /// <param name="within">A command that runs it, with what it needs before dmp's own; none runs it as it is.</param>
    public static async Task<DmpResult> RunAsync(
        IReadOnlyList<string> arguments,
        Action<Process, string>? onLine = null,
        Action<Process>? onStart = null,
        IReadOnlyList<string>? within = null)
    {
        string[] command = [.. within ?? [], "dotnet", Path.Combine(AppContext.BaseDirectory, "Dmp.Host.dll"), .. arguments];
        var start = new ProcessStartInfo(command[0], command[1..])
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            UseShellExecute = false,
            Environment = { ["DMP_ROOT"] = DemoGuest.Root, ["DMP_DEBUG"] = "" },
        };
        using Process process = Process.Start(start)!;
        try
        {
            onStart?.Invoke(process);
            Task<string> error = process.StandardError.ReadToEndAsync();
            var output = new StringBuilder();
            Task reading = Task.Run(async () =>
            {
                while (await process.StandardOutput.ReadLineAsync() is { } line)
                {
                    _ = output.Append(line).Append('\n');
                    onLine?.Invoke(process, line);
                }
            });
            await Task.WhenAll(error, reading).WaitAsync(Longest);
            await process.WaitForExitAsync().WaitAsync(Longest);
            return new DmpResult(process.ExitCode, output.ToString(), await error);
        }
        finally
        {
            if (!process.HasExited)
            {
                process.Kill();
            }
        }
    }

    /// <summary>Runs the Debian guest, on one vCPU and with a journal of its own unless the options say otherwise.</summary>
    /// <param name="mode">How the guest's kernel is run.</param>
    /// <param name="words">What follows the console on the kernel's command line.</param>
    /// <param name="options">More options of dmp run.</param>
    /// <param name="onLine">Called with each line of the console, while dmp runs.</param>
    /// <param name="onStart">Called when dmp has been started.</param>
    /// <param name="within">A command that runs dmp, with what it needs before dmp's own.</param>
    public static async Task<DmpResult> BootAsync(
        string mode,
        string words,
        IReadOnlyList<string> options,
        Action<Process, string>? onLine = null,
        Action<Process>? onStart = null,
        IReadOnlyList<string>? within = null)
    {
        (string kernel, string initrd) = DemoGuest.Get();
        using var directory = new TemporaryDirectory();
        string[] journal = mode == "trap" || options.Contains("--journal")
            ? []
            : ["--journal", Path.Combine(directory.Path, "patches.db")];
        string[] cpus = options.Contains("--cpus") ? [] : ["--cpus", "1"];
        return await RunAsync(
            [
                "run", "--mode", mode, "--kernel", kernel, "--initrd", initrd, "--cmdline", $"console=ttyS0 {words}", "--memory", "512M",
                .. cpus, .. journal, .. options,
            ],
            onLine,
            onStart,
            within);
    }

    /// <summary>Resident memory of a process that is not guest RAM, in bytes.</summary>
    public static long ResidentWithoutGuestRam(int processId)
    {
        long all = 0;
        long guest = 0;
        bool ram = false;
        foreach (string line in File.ReadLines($"/proc/{processId}/smaps"))
        {
            if (line.StartsWith("Rss:", StringComparison.Ordinal))
            {
                const int Kibibyte = 1024;
                long bytes = Kibibyte * long.Parse(line["Rss:".Length..^"kB".Length].Trim(), CultureInfo.InvariantCulture);
                all += bytes;
                guest += ram ? bytes : 0;
            }
            else if (!line.Split(' ')[0].EndsWith(':'))
            {
                ram = line.Contains("memfd:dmp-guest-ram", StringComparison.Ordinal);
            }
        }

        Assert.InRange(guest, 1 << 20, long.MaxValue);
        return all - guest;
    }
}
