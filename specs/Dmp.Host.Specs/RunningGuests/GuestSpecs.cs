using System.Text.Json;

namespace Dmp.Host.Specs.RunningGuests;

/// <summary>The Debian guest, from its first instruction to its end.</summary>
[Collection(GuestCollection.Name)]
// The emulated machine's own kernel does not survive every boot.
[Trait("needs", "fast kvm")]
public class GuestSpecs
{
    /// <summary>
    /// Checks of guest/programs/signals.c that are known to fail in this version; the aim is none. What is not in the list must pass.
    /// </summary>
    private const string KnownFailures = "ldt,rdtsc-forbidden,cpu-number";

    private const long LargestProcess = 200L << 20;

    [SkippableFact(DisplayName = "Debian's kernel boots without a complaint, and the report says what it cost")]
    public Task Boots() => CheckBootAsync("dmp");

    [SkippableFact(DisplayName = "Debian's kernel boots with each of its sensitive instructions trapped, and the report says what it cost")]
    [Trait("needs", "fast kvm")]
    public Task Boots_trapped() => CheckBootAsync("trap");

    [SkippableTheory(DisplayName = "User programs get the signals and keep the registers that a CPU would give them, in little memory")]
    [Trait("needs", "fast kvm")]
    [InlineData("trap")]
    [InlineData("dmp")]
    public async Task Workloads(string mode)
    {
        long resident = 0;

        DmpResult result = await DmpProcess.BootAsync(
            mode,
            $"dmp.work=signals,xstate dmp.skip={KnownFailures} dmp.end=poweroff",
            ["--timeout", "300"],
            (process, line) =>
            {
                if (line.Trim() == "BOOTED")
                {
                    resident = DmpProcess.ResidentWithoutGuestRam(process.Id);
                }
            });

        result.ShouldExitWith(0);
        string[] lines = result.Output.ReplaceLineEndings("\n").Split('\n');
        Assert.Contains("signals ok", lines);
        Assert.Contains("xstate ok", lines);
        Assert.Contains("WORK DONE", lines);
        Assert.Empty(result.Complaints());
        Assert.InRange(resident, 1, LargestProcess);
    }

    [SkippableFact(DisplayName = "A guest that reboots has ended well")]
    public async Task Reboots()
    {
        DmpResult result = await DmpProcess.BootAsync("dmp", "dmp.work= dmp.end=reboot", ["--timeout", "200"]);

        result.ShouldExitWith(0);
        Assert.Contains("WORK DONE", result.Output, StringComparison.Ordinal);
        Assert.Empty(result.Complaints());
    }

    [SkippableFact(DisplayName = "A kernel panic is a failure of the guest, also when the kernel then resets the machine")]
    public async Task Panics()
    {
        using var directory = new TemporaryDirectory();
        string path = Path.Combine(directory.Path, "report.json");

        DmpResult result = await DmpProcess.BootAsync("dmp", "dmp.work= dmp.end=panic panic=-1", ["--timeout", "200", "--report", path]);

        result.ShouldExitWith(4);
        Assert.Contains("dmp: the guest failed: ", result.Error, StringComparison.Ordinal);
        Assert.Contains("Kernel panic - not syncing: sysrq triggered crash", result.Error, StringComparison.Ordinal);
        using var report = JsonDocument.Parse(await File.ReadAllBytesAsync(path));
        Assert.Equal("guest_failed", report.RootElement.GetProperty("outcome").GetString());
        Assert.Contains("sysrq triggered crash", report.RootElement.GetProperty("detail").GetString(), StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "A run whose time is up ends with 5, and has a report")]
    public async Task TimesOut()
    {
        using var directory = new TemporaryDirectory();
        string path = Path.Combine(directory.Path, "report.json");

        DmpResult result = await DmpProcess.BootAsync("dmp", "", ["--timeout", "2", "--report", path]);

        result.ShouldExitWith(5);
        Assert.StartsWith("dmp: timeout: ", result.Error, StringComparison.Ordinal);
        using var report = JsonDocument.Parse(await File.ReadAllBytesAsync(path));
        Assert.Equal("timeout", report.RootElement.GetProperty("outcome").GetString());
        Assert.InRange(report.RootElement.GetProperty("wall_ms").GetDouble(), 2000, 12_000);
        Assert.False(report.RootElement.TryGetProperty("until_ms", out _));
    }

    private static async Task CheckBootAsync(string mode)
    {
        using var directory = new TemporaryDirectory();
        string path = Path.Combine(directory.Path, "report.json");

        DmpResult result = await DmpProcess.BootAsync(mode, "", ["--until", "BOOTED", "--report", path, "--timeout", "200"]);

        result.ShouldExitWith(0);
        Assert.Contains("Linux version ", result.Output, StringComparison.Ordinal);
        Assert.Contains("\nBOOTED", result.Output.ReplaceLineEndings("\n"), StringComparison.Ordinal);
        Assert.Empty(result.Complaints());
        Assert.Empty(result.Error);
        using var report = JsonDocument.Parse(await File.ReadAllBytesAsync(path));
        CheckReport(report.RootElement, mode);
    }

    private static void CheckReport(JsonElement report, string mode)
    {
        Assert.Equal(1, report.GetProperty("schema").GetInt32());
        Assert.Equal("until", report.GetProperty("outcome").GetString());
        Assert.NotEqual("", report.GetProperty("detail").GetString());

        JsonElement host = report.GetProperty("host");
        Assert.Contains(host.GetProperty("cpl0").GetString(), new[] { "emulated", "native" });
        Assert.Contains(host.GetProperty("host_page_table_writes").GetString(), new[] { "seen", "unseen" });
        Assert.InRange(host.GetProperty("exit_us").GetDouble(), 0.1, 1000);

        JsonElement guest = report.GetProperty("guest");
        Assert.Equal(DemoGuest.Kernel, guest.GetProperty("kernel").GetString());
        Assert.Matches("^[0-9a-f]{40}$", guest.GetProperty("kernel_id").GetString());
        Assert.Equal(1, guest.GetProperty("cpus").GetInt32());
        Assert.Equal(512L << 20, guest.GetProperty("memory_bytes").GetInt64());
        Assert.Equal(mode, guest.GetProperty("mode").GetString());

        double wall = report.GetProperty("wall_ms").GetDouble();
        Assert.InRange(report.GetProperty("until_ms").GetDouble(), 100, wall);
        CheckExits(report.GetProperty("exits"), least: 10_000);

        JsonElement[] phases = [.. report.GetProperty("phases").EnumerateArray()];
        // What the guest prints until it is stopped may begin more of them.
        Assert.Equal(["boot", "init"], phases.Select(phase => phase.GetProperty("name").GetString()).Take(2));
        Assert.All(phases, phase => CheckExits(phase.GetProperty("exits"), least: 0));
        Assert.InRange(phases.Sum(phase => phase.GetProperty("wall_ms").GetDouble()), wall * 0.99, (wall * 1.01) + 1);
        Assert.Equal(
            report.GetProperty("exits").GetProperty("total").GetInt64(),
            phases.Sum(phase => phase.GetProperty("exits").GetProperty("total").GetInt64()));

        CheckSites(report.GetProperty("sites"), report.GetProperty("exits").GetProperty("total").GetInt64());
        CheckPatches(report, mode);
    }

    private static void CheckPatches(JsonElement report, string mode)
    {
        JsonElement patches = report.GetProperty("patches");
        JsonElement stops = report.GetProperty("quiesce_us");
        if (mode == "trap")
        {
            Assert.All(patches.EnumerateObject(), count => Assert.Equal(0, count.Value.GetInt64()));
            Assert.Equal(0, stops.GetProperty("count").GetInt64());
            return;
        }

        Assert.InRange(patches.GetProperty("applied").GetInt64(), 10, long.MaxValue);
        Assert.Equal(0, patches.GetProperty("replayed").GetInt64());
        Assert.InRange(stops.GetProperty("count").GetInt64(), 1, patches.GetProperty("applied").GetInt64());
        Assert.InRange(stops.GetProperty("p50").GetDouble(), 1, stops.GetProperty("max").GetDouble());
        Assert.Contains(report.GetProperty("sites").EnumerateArray(), site =>
            site.TryGetProperty("state", out JsonElement state) && state.GetString() == "applied"
            && site.GetProperty("template").GetString() != "");
    }

    private static void CheckExits(JsonElement exits, long least)
    {
        Dictionary<string, long> kinds = exits.GetProperty("by_kind").EnumerateObject()
            .ToDictionary(kind => kind.Name, kind => kind.Value.GetInt64());
        Assert.Equal(
            [
                "code_scan", "code_write", "guest_fault", "halt", "hidden_fault", "io", "kick", "other", "page_table", "privileged",
                "silent", "syscall",
            ],
            kinds.Keys.Order(StringComparer.Ordinal));
        Assert.All(kinds.Values, count => Assert.InRange(count, 0, long.MaxValue));
        long total = exits.GetProperty("total").GetInt64();
        Assert.InRange(total, least, long.MaxValue);
        Assert.Equal(total, kinds.Values.Sum());
    }

    private static void CheckSites(JsonElement sites, long total)
    {
        JsonElement[] all = [.. sites.EnumerateArray()];
        Assert.NotEmpty(all);
        Assert.All(all, site =>
        {
            Assert.Matches("^0x[0-9a-f]+$", site.GetProperty("rip").GetString());
            Assert.InRange(site.GetProperty("exits").GetInt64(), 1, total);
        });
        Assert.InRange(all.Sum(site => site.GetProperty("exits").GetInt64()), 1, total);
        Assert.Contains(all, site => site.GetProperty("kind").GetString() == "silent"
            && site.TryGetProperty("symbol", out JsonElement symbol)
            && symbol.GetString()!.Contains("native_save_fl", StringComparison.Ordinal));
    }
}
