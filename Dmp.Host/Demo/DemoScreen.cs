using System.Globalization;
using Dmp.Actors.Console;
using Dmp.Actors.Exits;
using Dmp.Actors.Machine;
using Spectre.Console;

namespace Dmp.Host.Demo;

/// <summary>
/// Shows a run on stderr: the guest's lines dimmed, and below them how far it is. One loop writes all of it, so that the two never
/// mix. Without a terminal the same as plain lines.
/// </summary>
internal sealed class DemoScreen : IConsoleSink
{
    private static readonly TimeSpan LiveInterval = TimeSpan.FromMilliseconds(100);
    private static readonly TimeSpan PlainInterval = TimeSpan.FromSeconds(5);

    private readonly object gate = new();
    private readonly LineSplitter splitter = new();
    private List<string> lines = [];

    /// <inheritdoc />
    public void Write(ReadOnlyMemory<byte> bytes)
    {
        lock (gate)
        {
            splitter.Feed(bytes.Span, lines);
        }
    }

    /// <summary>Shows a run until it is over.</summary>
    public async Task ShowAsync(MachineRun run, HostEnvironment host)
    {
        if (!host.ErrorIsTerminal)
        {
            await ShowPlainAsync(run, host.Error).ConfigureAwait(false);
            return;
        }

        IAnsiConsole console = host.ErrorConsole();
        await console.Status().StartAsync("starting", async status =>
        {
            while (!run.Completion.IsCompleted)
            {
                WriteLines(console, TakeLines());
                status.Status = Markup.Escape(await ProgressAsync(run).ConfigureAwait(false));
                await Task.WhenAny(run.Completion, Task.Delay(LiveInterval)).ConfigureAwait(false);
            }
        }).ConfigureAwait(false);
        WriteLines(console, TakeLastLines());
    }

    private async Task ShowPlainAsync(MachineRun run, TextWriter error)
    {
        long nextProgress = Environment.TickCount64 + (long)PlainInterval.TotalMilliseconds;
        while (!run.Completion.IsCompleted)
        {
            TakeLines().ForEach(line => error.WriteLine($"  | {line}"));
            if (Environment.TickCount64 >= nextProgress)
            {
                nextProgress += (long)PlainInterval.TotalMilliseconds;
                await error.WriteLineAsync($"dmp: {await ProgressAsync(run).ConfigureAwait(false)}").ConfigureAwait(false);
            }

            await Task.WhenAny(run.Completion, Task.Delay(LiveInterval)).ConfigureAwait(false);
        }

        TakeLastLines().ForEach(line => error.WriteLine($"  | {line}"));
    }

    private static void WriteLines(IAnsiConsole console, List<string> lines)
    {
        foreach (string line in lines)
        {
            // The guest's own phase lines are what a reader looks for in all that text.
            Style style = line.StartsWith("::", StringComparison.Ordinal) ? new Style(Color.Aqua) : new Style(decoration: Decoration.Dim);
            console.Write(new Text(line, style).Ellipsis());
            console.WriteLine();
        }
    }

    private static async Task<string> ProgressAsync(MachineRun run)
    {
        try
        {
            // A short limit: while the aggregator restarts the display shall go on with what it has.
            using var limit = new CancellationTokenSource(TimeSpan.FromSeconds(1));
            ExitProtocol.Totals totals = await run.ProgressAsync(limit.Token).ConfigureAwait(false);
            string rate = totals.ExitsPerSecond is { } exits
                ? string.Create(CultureInfo.InvariantCulture, $", {exits:N0} exits/s")
                : "";
            return string.Create(
                CultureInfo.InvariantCulture,
                $"{totals.Sample.At.TotalSeconds:F1} s, phase {totals.Phase}{rate}, {totals.Sample.Total:N0} exits");
        }
        catch (OperationCanceledException)
        {
            return "...";
        }
    }

    private List<string> TakeLines()
    {
        lock (gate)
        {
            List<string> taken = lines;
            lines = [];
            return taken;
        }
    }

    private List<string> TakeLastLines()
    {
        lock (gate)
        {
            splitter.Finish(lines);
        }

        return TakeLines();
    }
}
