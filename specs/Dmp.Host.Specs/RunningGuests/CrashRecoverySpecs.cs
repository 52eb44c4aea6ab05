using System.Collections.Immutable;
using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Dmp.Actors;
using Dmp.Actors.Journal;
using Xunit.Abstractions;

namespace Dmp.Host.Specs.RunningGuests;

/// <summary>dmp is killed while it patches a kernel that boots, and started again. DMP_SPEC_STORM says how often.</summary>
[Collection(GuestCollection.Name)]
[Trait("needs", "fast kvm")]
public class CrashRecoverySpecs(ITestOutputHelper output)
{
    private const int FewRounds = 3;
    private const int Killed = 137; // 128 + SIGKILL
    private const string Intended = "in "; // the event's manifest

    /// <summary>A boot commits some 200 events in some thousands of writes.</summary>
    private const int MostEvents = 190;
    private const int MostWrites = 4000;
    private const int MostWritesOfRecovery = 30;

    [SkippableFact(DisplayName = "Killed at any moment of the patch storm, the journal is as it was acknowledged, and the kernel boots with it")]
    public async Task Storm()
    {
        _ = DemoGuest.Get();
        int rounds = int.TryParse(Environment.GetEnvironmentVariable("DMP_SPEC_STORM"), CultureInfo.InvariantCulture, out int wanted)
            ? wanted
            : FewRounds;
        int acknowledged = 0;
        int killed = 0;
        for (int round = 0; round < rounds; round++)
        {
            Figures figures = await RoundAsync(round);
            output.WriteLine($"round {round}: {figures}");
            acknowledged += figures.Acknowledged;
            killed += figures.Kills;
        }

        output.WriteLine($"{rounds} rounds, {killed} kills, {acknowledged} acknowledged events, none lost");
        Assert.InRange(killed, 1, int.MaxValue);
    }

    private static async Task<Figures> RoundAsync(int round)
    {
        // A round is the same however many there are.
        var random = new Random(round);
        using var directory = new TemporaryDirectory();
        string journal = Path.Combine(directory.Path, "patches.db");

        // As soon as an intent is there, or after any event, or anywhere in the middle of a commit, or before there is any event.
        var moment = (Moment)(round % Enum.GetValues<Moment>().Length);
        int target = random.Next(1, moment switch { Moment.Write => MostWrites, Moment.Begin => MostWritesOfRecovery, _ => MostEvents });
        (bool wasKilled, ImmutableArray<string> committed) = await BootAndKillAsync(journal, watch => moment switch
        {
            Moment.Intent => watch.Committed.Length >= target && watch.Committed[^1].StartsWith(Intended, StringComparison.Ordinal),
            Moment.Event => watch.Committed.Length >= target,
            Moment.Write => watch.WritesSinceFirst >= target,
            _ => watch.Writes >= target,
        });
        int kills = wasKilled ? 1 : 0;

        // Reading changes nothing, and finds all.
        string list = await ListAsync(journal);
        Assert.Equal(list, await ListAsync(journal));
        AssertBegins(committed, JournalWatch.Read(journal));
        KernelHistory? crashed = await HistoryAsync(journal);
        int open = crashed is null ? 0 : Intents(crashed).Except(Resolved(crashed)).Count();

        // Switching a site off and on opens the journal for writing twice: what a crash left open is resolved by the first, and that is all.
        if (await RecoverTwiceAsync(journal, crashed))
        {
            Assert.Equal(list, await ListAsync(journal));
        }

        // What is recovered may crash again.
        if (random.Next(2) == 0)
        {
            int another = random.Next(1, MostWritesOfRecovery);
            (bool again, ImmutableArray<string> seen) = await BootAndKillAsync(journal, watch => watch.Writes >= another);
            kills += again ? 1 : 0;
            AssertBegins(seen, JournalWatch.Read(journal));
            AssertBegins(committed, seen.IsEmpty ? committed : seen);
        }

        KernelHistory? before = await HistoryAsync(journal);
        string report = Path.Combine(directory.Path, "report.json");
        DmpResult result = await BootAsync(journal, ["--report", report]);
        result.ShouldExitWith(0);
        Assert.Empty(result.Complaints());
        Assert.Equal("", result.Error);
        AssertBegins(committed, JournalWatch.Read(journal));

        using JsonDocument document = JsonDocument.Parse(await File.ReadAllTextAsync(report));
        JsonElement patches = document.RootElement.GetProperty("patches");
        int replayed = patches.GetProperty("replayed").GetInt32();
        int inForce = patches.GetProperty("in_force").GetInt32();
        Assert.Equal(0, patches.GetProperty("mismatched").GetInt32());
        Assert.Equal(inForce, patches.GetProperty("verified").GetInt32());

        KernelHistory after = (await HistoryAsync(journal))!;
        int replayable = before is null ? 0 : Applied(before).Length;
        Assert.Equal(replayable, replayed);
        Assert.Empty(before is null ? [] : Applied(before).Except(Applied(after)));
        Assert.InRange(inForce, 1, Applied(after).Length);

        // Each intent came to one end and no more, however often it was recovered.
        Assert.Equal(Resolved(after).Length, Resolved(after).Distinct().Count());
        Assert.Empty(Intents(after).Except(Resolved(after)));
        Assert.True(wasKilled || !committed.IsEmpty, "nobody saw an event");
        return new Figures(moment, kills, target, committed.Length, open, replayed, inForce);
    }

    private static async Task<(bool Killed, ImmutableArray<string> Committed)> BootAndKillAsync(string journal, Func<JournalWatch, bool> isTime)
    {
        using var watch = new JournalWatch(journal, isTime);
        DmpResult result = await BootAsync(journal, [], process => watch.Start(process.Kill));

        watch.Finish();

        // A boot that was over before it was time is a boot like any other.
        result.ShouldExitWith(watch.Acted && result.ExitCode != 0 ? Killed : 0);
        return (result.ExitCode == Killed, watch.Committed);
    }

    private static Task<DmpResult> BootAsync(string journal, string[] options, Action<Process>? onStart = null) => DmpProcess.BootAsync(
        "dmp", "quiet", ["--journal", journal, "--until", "BOOTED", "--timeout", "200", .. options], onStart: onStart);

    private static async Task<string> ListAsync(string journal)
    {
        if (!File.Exists(journal))
        {
            return "";
        }

        using var harness = new Harness();
        Ran ran = await harness.RunAsync("patches", "list", "--journal", journal, "--json");
        Assert.True(ran.ExitCode == 0, $"{ran}");
        return ran.Text;
    }

    private static async Task<KernelHistory?> HistoryAsync(string journal) => !File.Exists(journal)
        ? null
        : (await JournalReader.ReadHistoriesAsync(JournalConnection.Parse(journal), ControlSettings.Load(SettingsPath)))
            .Values.SingleOrDefault();

    private static async Task<bool> RecoverTwiceAsync(string journal, KernelHistory? history)
    {
        if (history is null || history.State.Sites.FirstOrDefault(site => site.SiteOffset > 0) is not { } site)
        {
            return false;
        }

        string name = string.Create(CultureInfo.InvariantCulture, $"+0x{site.SiteOffset:x}");
        using var harness = new Harness();
        foreach (string verb in new[] { "disable", "enable" })
        {
            Ran ran = await harness.RunAsync("patches", verb, name, "--journal", journal);
            Assert.True(ran.ExitCode == 0, $"{ran}");
        }

        return true;
    }

    private static string SettingsPath => Path.Combine(AppContext.BaseDirectory, "akka.hocon");

    private static void AssertBegins(ImmutableArray<string> expected, ImmutableArray<string> events) =>
        Assert.Equal(expected.AsEnumerable(), events.Take(expected.Length));

    private static ImmutableArray<JournaledPatch> Applied(KernelHistory history) =>
    [
        .. history.State.Entries.Values.Concat(history.State.Variants)
            .Where(entry => entry.Status == PatchStatus.Applied)
            .Select(entry => entry.Patch),
    ];

    private static ImmutableArray<(long Transaction, long Offset)> Intents(KernelHistory history) =>
    [
        .. history.Events.Select(recorded => recorded.Event).OfType<JournalEvent.PatchIntended>()
            .SelectMany(intended => intended.Patches.Select(patch => (intended.Transaction, patch.Offset))),
    ];

    private static ImmutableArray<(long Transaction, long Offset)> Resolved(KernelHistory history) =>
    [
        .. history.Events.SelectMany(recorded => recorded.Event switch
        {
            JournalEvent.PatchApplied applied => applied.Offsets.Select(offset => (applied.Transaction, offset)),
            JournalEvent.PatchAborted aborted => aborted.Offsets.Select(offset => (aborted.Transaction, offset)),
            _ => [],
        }),
    ];

    private enum Moment
    {
        Intent,
        Event,
        Write,
        Begin,
    }

    /// <summary>What a round came to.</summary>
    /// <param name="Moment">What dmp was doing when it was killed first.</param>
    /// <param name="Kills">How often dmp was killed.</param>
    /// <param name="Target">Events or writes after which it was.</param>
    /// <param name="Acknowledged">Events seen committed before the first kill.</param>
    /// <param name="Open">Patches intended, and neither applied nor aborted, when it was killed.</param>
    /// <param name="Replayed">Patches that the last run began with.</param>
    /// <param name="InForce">Patches in force at its end, all verified.</param>
    private sealed record Figures(Moment Moment, int Kills, int Target, int Acknowledged, int Open, int Replayed, int InForce);
}
