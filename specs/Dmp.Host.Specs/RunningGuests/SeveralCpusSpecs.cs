using System.Globalization;
using System.Text.Json;

namespace Dmp.Host.Specs.RunningGuests;

/// <summary>The Debian guest on several vCPUs, all of them at work.</summary>
[Collection(GuestCollection.Name)]
public class SeveralCpusSpecs
{
    private static readonly string[] Troubles =
        ["rcu_sched detected", "rcu: INFO", "self-detected stall", "soft lockup", "Marking TSC unstable", "failed to report alive"];

    [SkippableTheory(DisplayName = "A guest of two vCPUs works on both, with the TLBs audited and patches applied, and switches itself off")]
    [Trait("needs", "fast kvm")]
    [InlineData("dmp", 2)]
    public Task Two(string mode, int cpus) => WorksOnAll(mode, cpus);

    [SkippableTheory(DisplayName = "A guest of many vCPUs, more than the host may have, works on all of them in both modes")]
    [Trait("needs", "fast kvm")]
    [InlineData("trap", 2)]
    [InlineData("trap", 4)]
    [InlineData("dmp", 4)]
    [InlineData("dmp", 8)]
    [InlineData("dmp", 16)]
    public Task Many(string mode, int cpus) => WorksOnAll(mode, cpus);

    private static async Task WorksOnAll(string mode, int cpus)
    {
        using var directory = new TemporaryDirectory();
        string path = Path.Combine(directory.Path, "report.json");

        DmpResult result = await DmpProcess.BootAsync(
            mode,
            "dmp.work=parallel dmp.n=3 dmp.end=poweroff",
            ["--cpus", cpus.ToString(CultureInfo.InvariantCulture), "--audit", "--report", path, "--timeout", "330"]);

        result.ShouldExitWith(0);
        string[] lines = result.Output.ReplaceLineEndings("\n").Split('\n');
        Assert.Contains(string.Create(CultureInfo.InvariantCulture, $"processors {cpus}"), lines);
        Assert.Contains("parallel ok", lines);
        Assert.Contains("WORK DONE", lines);
        Assert.Empty(result.Complaints());
        Assert.DoesNotContain(lines, line => Troubles.Any(trouble => line.Contains(trouble, StringComparison.Ordinal)));

        using var report = JsonDocument.Parse(await File.ReadAllBytesAsync(path));
        JsonElement root = report.RootElement;
        Assert.Equal("powered_off", root.GetProperty("outcome").GetString());
        Assert.Equal(cpus, root.GetProperty("vcpus").GetArrayLength());
        Assert.All(root.GetProperty("vcpus").EnumerateArray(), vcpu => Assert.NotEqual(0, vcpu.GetProperty("exits").GetInt64()));
        if (mode == "dmp")
        {
            JsonElement patches = root.GetProperty("patches");
            Assert.NotEqual(0, patches.GetProperty("applied").GetInt32());
            Assert.Equal(0, patches.GetProperty("mismatched").GetInt32());
        }
    }
}
