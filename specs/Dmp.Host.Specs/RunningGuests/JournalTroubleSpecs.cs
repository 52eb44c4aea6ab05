using System.Diagnostics;
using System.Text.Json;
using Dmp.Actors;
using Dmp.Actors.Journal;
using Dmp.Actors.Specs.Journal;
using Npgsql;

namespace Dmp.Host.Specs.RunningGuests;

/// <summary>What becomes of a run whose journal cannot be used, from the start or from some moment on.</summary>
[Collection(GuestCollection.Name)]
public sealed class JournalTroubleSpecs : IDisposable
{
    private const string RunsOn = "The guest runs on; no further code is patched";
    private const int MostLines = 3;
    private const int SomeEvents = 60; // of about 200 in a boot

    private readonly TemporaryDirectory directory = new();

    private string Journal => Path.Combine(directory.Path, "patches.db");

    public void Dispose() => directory.Dispose();

    [SkippableFact(DisplayName = "A journal that was cut off, wherever, ends the run before the guest starts")]
    [Trait("needs", "fast kvm")]
    public async Task Truncated()
    {
        _ = DemoGuest.Kernel;
        await MakeJournalAsync();
        byte[] whole = await File.ReadAllBytesAsync(Journal);
        foreach (int length in new[] { 50, 1000, whole.Length / 2 })
        {
            await File.WriteAllBytesAsync(Journal, whole[..length]);
            Assert.Contains("move the file away", await RefusalAsync(), StringComparison.Ordinal);
        }
    }

    [SkippableTheory(DisplayName = "A journal of random bytes, from its beginning or from its second page on, ends the run before the guest starts")]
    [Trait("needs", "fast kvm")]
    [InlineData(0)]
    [InlineData(4096)]
    public async Task Noise(int from)
    {
        _ = DemoGuest.Kernel;
        await MakeJournalAsync();
        byte[] bytes = await File.ReadAllBytesAsync(Journal);
        new Random(from).NextBytes(bytes.AsSpan(from));
        await File.WriteAllBytesAsync(Journal, bytes);
        Assert.Contains("move the file away", await RefusalAsync(), StringComparison.Ordinal);
        Assert.Equal(bytes, await File.ReadAllBytesAsync(Journal));
    }

    [Trait("needs", "fast kvm")]
    [SkippableFact(DisplayName = "A directory in the journal's place ends the run before the guest starts")]
    public async Task Directory_in_place()
    {
        _ = DemoGuest.Kernel;
        Directory.CreateDirectory(Journal);
        Assert.Contains("it is a directory", await RefusalAsync(), StringComparison.Ordinal);
    }

    [SkippableTheory(DisplayName = "A read-only journal, a read-only folder and a full disk end the run before the guest starts")]
    [Trait("needs", "fast kvm")]
    [InlineData("mount --bind \"$1/patches.db\" \"$1/patches.db\"; mount -o remount,ro,bind \"$1/patches.db\"", "make it writable")]
    [InlineData("mount --bind \"$1\" \"$1\"; mount -o remount,ro,bind \"$1\"", "make it writable")]
    [InlineData("mount -t tmpfs -o ro tmpfs \"$1\"", "make it writable")]
    [InlineData("mount -t tmpfs -o size=16k tmpfs \"$1\"", "free some space")]
    public async Task Mounts(string mount, string remedy)
    {
        _ = DemoGuest.Kernel;
        await MakeJournalAsync();
        Assert.Contains(remedy, await RefusalAsync(Mounted(mount)), StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "A PostgreSQL server that is not there ends the run before the guest starts")]
    public async Task No_server()
    {
        _ = DemoGuest.Kernel;
        string connection = $"Host={directory.Path};Username=dmp;Password=secret;Database=dmp";
        string line = await RefusalAsync(connection: connection);
        Assert.Contains("the server does not answer", line, StringComparison.Ordinal);
        Assert.DoesNotContain("secret", line, StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "A disk that becomes full is said once; the guest runs on, and the next run begins with what was stored")]
    [Trait("needs", "fast kvm")]
    public async Task Full_disk()
    {
        _ = DemoGuest.Kernel;
        string saved = Path.Combine(directory.Path, "saved");
        string folder = Path.Combine(directory.Path, "small");
        Directory.CreateDirectory(folder);
        Directory.CreateDirectory(saved);
        string report = Path.Combine(directory.Path, "report.json");

        // What was on the small disk goes with its process; a copy stays.
        string script = "mount -t tmpfs -o size=512k tmpfs \"$1\"; to=$2; from=$1; shift 2; code=0; \"$@\" || code=$?; cp \"$from\"/* \"$to\"; exit $code";
        DmpResult result = await BootAsync(
            Path.Combine(folder, "patches.db"), ["--report", report], within: Unshare(script, folder, saved));
        AssertRanOn(result);
        Assert.Contains("the disk is full; free some space", result.Error, StringComparison.Ordinal);
        using JsonDocument document = JsonDocument.Parse(await File.ReadAllTextAsync(report));
        int applied = document.RootElement.GetProperty("patches").GetProperty("applied").GetInt32();
        Assert.InRange(applied, 1, int.MaxValue);

        File.Copy(Path.Combine(saved, "patches.db"), Journal);
        if (File.Exists(Path.Combine(saved, "patches.db-wal")))
        {
            File.Copy(Path.Combine(saved, "patches.db-wal"), $"{Journal}-wal");
        }

        // The last transaction's result may be what did not fit any more.
        int stored = Applied(await StateAsync(Journal));
        Assert.InRange(stored, 1, applied);
        await AssertReplaysAsync(Journal, stored);
    }

    [SkippableTheory(DisplayName = "Whatever happens to the journal's files during a run, the guest runs on")]
    [Trait("needs", "fast kvm")]
    [InlineData("", true)]
    [InlineData("", false)]
    [InlineData("-wal", true)]
    [InlineData("-wal", false)]
    public async Task Damaged_during_a_run(string file, bool truncated)
    {
        _ = DemoGuest.Kernel;
        using var watch = new JournalWatch(Journal, watch => watch.Committed.Length >= SomeEvents);
        DmpResult result = await BootAsync(Journal, [], onStart: _ => watch.Start(() =>
        {
            using FileStream stream = new(Journal + file, FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite | FileShare.Delete, bufferSize: 0);
            long half = stream.Length / 2;
            if (truncated)
            {
                stream.SetLength(half);
            }
            else
            {
                byte[] noise = new byte[stream.Length - half];
                new Random(1).NextBytes(noise);
                RandomAccess.Write(stream.SafeFileHandle, noise, half);
            }
        }));
        watch.Finish();
        Assert.True(watch.Acted, $"{watch.Committed.Length} events in {watch.Writes} writes");

        // SQLite has most of it in memory, and need not notice; but when it does, one line says so.
        Assert.Contains("\nBOOTED", result.Output.ReplaceLineEndings("\n"), StringComparison.Ordinal);
        AssertNoNoise(result);
        result.ShouldExitWith(0);
        Assert.InRange(Lines(result).Length, 0, 1);

        // The next one finds it usable, or says in one line that it is not.
        DmpResult next = await BootAsync(Journal, []);
        AssertNoNoise(next);
        Assert.True(next.ExitCode is 0 or 2, $"{next}");
        Assert.InRange(Lines(next).Length, next.ExitCode == 2 ? 1 : 0, 1);
    }

    [SkippableFact(DisplayName = "A PostgreSQL server that stops in the middle of a run is said once; the guest runs on, and nothing stored is lost")]
    [Trait("needs", "fast kvm")]
    public async Task Server_stops()
    {
        const int Lines = 10; // of the console from one look at the server to the next
        _ = DemoGuest.Kernel;
        using PostgresCluster server = PostgresCluster.Create();
        server.Start();
        int seen = 0;
        IReadOnlyList<string> before = [];
        DmpResult result = await DmpProcess.BootAsync(
            "dmp",
            "",
            ["--journal", server.Connection, "--until", "BOOTED", "--timeout", "200"],
            (_, _) =>
            {
                // On the console's reader: nothing else waits for it.
                if (before.Count == 0 && ++seen % Lines == 0 && Stored(server.Connection) is { Count: >= SomeEvents } stored)
                {
                    before = stored;
                    server.Stop();
                }
            });
        AssertRanOn(result);
        Assert.NotEmpty(before);

        server.Start();
        Assert.Equal(before, Stored(server.Connection).Take(before.Count));
        await AssertReplaysAsync(server.Connection, Applied(await StateAsync(server.Connection)));
    }

    /// <summary>The events that a server has, in their order.</summary>
    private static List<string> Stored(string connection)
    {
        var events = new List<string>();
        using var session = new NpgsqlConnection($"{connection};Pooling=false");
        session.Open();
        using var isThere = new NpgsqlCommand("SELECT to_regclass('dmp_patch_events') IS NOT NULL", session);
        if (isThere.ExecuteScalar() is true)
        {
            using var ask = new NpgsqlCommand(
                "SELECT manifest || ' ' || encode(message, 'hex') FROM dmp_patch_events ORDER BY sequence_number", session);
            using NpgsqlDataReader reader = ask.ExecuteReader();
            while (reader.Read())
            {
                events.Add(reader.GetString(0));
            }
        }

        return events;
    }

    private static string[] Unshare(string script, params string[] arguments)
    {
        using var probe = Process.Start(new ProcessStartInfo("unshare", ["-m", "true"]) { RedirectStandardError = true })!;
        probe.WaitForExit();
        Skip.If(probe.ExitCode != 0, "this machine does not let the specs mount anything");
        return ["unshare", "-m", "sh", "-c", $"set -e; {script}", "sh", .. arguments];
    }

    private static Task<DmpResult> BootAsync(
        string journal, string[] options, Action<Process>? onStart = null, IReadOnlyList<string>? within = null) =>
        DmpProcess.BootAsync(
            "dmp", "quiet", ["--journal", journal, "--until", "BOOTED", "--timeout", "200", .. options], onStart: onStart, within: within);

    private static string[] Lines(DmpResult result) => result.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries);

    private static void AssertNoNoise(DmpResult result)
    {
        Assert.DoesNotContain("   at ", result.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("Exception", result.Error, StringComparison.Ordinal);
        Assert.Empty(result.Complaints());
    }

    private static void AssertRanOn(DmpResult result)
    {
        result.ShouldExitWith(0);
        Assert.Contains("\nBOOTED", result.Output.ReplaceLineEndings("\n"), StringComparison.Ordinal);
        AssertNoNoise(result);
        Assert.Contains(RunsOn, Lines(result)[0], StringComparison.Ordinal);

        // When the disk took the little that was left to store, and that for a while, a second line says so, and a third that it is over.
        Assert.InRange(Lines(result).Length, 1, MostLines);
    }

    private static async Task<JournalState?> StateAsync(string journal) =>
        (await JournalReader.ReadAsync(
            JournalConnection.Parse(journal), ControlSettings.Load(Path.Combine(AppContext.BaseDirectory, "akka.hocon"))))
        .Values.SingleOrDefault();

    private static int Applied(JournalState? state) => state is null
        ? 0
        : state.Entries.Values.Concat(state.Variants).Count(entry => entry.Status == PatchStatus.Applied);

    private string[] Mounted(string mount) => Unshare($"{mount}; shift; exec \"$@\"", directory.Path);

    private async Task AssertReplaysAsync(string journal, int patches)
    {
        string report = Path.Combine(directory.Path, "next.json");
        DmpResult result = await BootAsync(journal, ["--report", report]);
        result.ShouldExitWith(0);
        Assert.Equal("", result.Error);
        using JsonDocument document = JsonDocument.Parse(await File.ReadAllTextAsync(report));
        JsonElement section = document.RootElement.GetProperty("patches");
        Assert.Equal(patches, section.GetProperty("replayed").GetInt32());
        Assert.Equal(0, section.GetProperty("mismatched").GetInt32());
    }

    /// <summary>A journal with tables and some events, without a guest.</summary>
    private async Task MakeJournalAsync()
    {
        JournalConnection connection = JournalConnection.Parse(Journal);
        Assert.True(JournalCheck.TryOpen(connection, out string message), message);
        ControlSettings settings = ControlSettings.Load(Path.Combine(AppContext.BaseDirectory, "akka.hocon"));
        foreach (bool disabled in new[] { true, false })
        {
            await JournalEditor.SwitchAsync(connection, "a kernel", siteOffset: 0x10, disabled, settings);
        }
    }

    private async Task<string> RefusalAsync(IReadOnlyList<string>? within = null, string? connection = null)
    {
        DmpResult result = await BootAsync(connection ?? Journal, [], within: within);
        result.ShouldExitWith(2);
        Assert.Empty(result.Output);
        AssertNoNoise(result);
        string line = Assert.Single(Lines(result));
        Assert.StartsWith("dmp: --journal: cannot open the patch journal (", line, StringComparison.Ordinal);
        Assert.Contains(connection is null ? Journal : directory.Path, line, StringComparison.Ordinal);
        return line;
    }
}
