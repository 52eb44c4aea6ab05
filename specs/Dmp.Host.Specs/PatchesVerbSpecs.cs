using System.Collections.Immutable;
using System.Text.Json;
using Akka.Actor;
using Akka.Configuration;
using Dmp.Actors;
using Dmp.Actors.Journal;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;

namespace Dmp.Host.Specs;

/// <summary>The verb by its command line, on journals that the journal's own actor wrote.</summary>
public sealed class PatchesVerbSpecs : IDisposable
{
    private const string Kernel = "0123456789abcdef";
    private const ulong Base = 0xffffffff81000000;

    private readonly Harness harness = new();

    private string Journal => harness.PathOf("patches.db");

    public void Dispose() => harness.Dispose();

    [Fact(DisplayName = "list shows each site with address, symbol, template, state and what it saves, in aligned columns")]
    public async Task List()
    {
        await WriteAsync(Kernel, Base);
        Ran ran = await RunAsync("list");
        Assert.Equal(
            $"""
            kernel {Kernel}: 1 applied, 1 refused, 1 retired
            SITE                SYMBOL            TEMPLATE   STATE    EXITS  SAVED/S
            0xffffffff81000010  save_flags+0x0    pushf      applied   1000     ~500
            0xffffffff81000020  save_other+0x10   pushf+cli  retired      -        -
            0xffffffff81000040  native_cpuid+0xf  -          refused      -        -

            """.ReplaceLineEndings("\n"),
            ran.Text.ReplaceLineEndings("\n"));
        Assert.Equal((0, ""), (ran.ExitCode, ran.Error));
    }

    [Fact(DisplayName = "list shows offsets when the journal does not say where the kernel lay")]
    public async Task Without_addresses()
    {
        await WriteAsync(Kernel, kernelBase: 0);
        Ran ran = await RunAsync("list");
        Assert.Contains("\n+0x10 ", ran.Text.ReplaceLineEndings("\n"), StringComparison.Ordinal);
        Assert.DoesNotContain("0xffffffff", ran.Text, StringComparison.Ordinal);
        Ran shown = await RunAsync("show", "+0x10");
        Assert.Contains("does not say where the kernel lay", shown.Text, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "list keeps kernels apart and fits in 100 columns, however long the names are")]
    public async Task Two_kernels()
    {
        await WriteAsync(Kernel, Base);
        await WriteAsync("fedcba9876543210", Base, symbol: new string('x', 300) + "+0x1234", templates: 20);
        string[] lines = (await RunAsync("list")).Text.ReplaceLineEndings("\n").Split('\n');
        Assert.Equal(
            [$"kernel {Kernel}", "kernel fedcba9876543210"],
            lines.Where(line => line.StartsWith("kernel", StringComparison.Ordinal)).Select(line => line.Split(':')[0]));
        Assert.All(lines, line => Assert.InRange(line.Length, 0, 100));
        Assert.Contains(lines, line => line.Contains("..+0x1234 ", StringComparison.Ordinal));
        Ran one = await RunAsync("list", "--kernel-id", "fedc");
        Assert.DoesNotContain(Kernel, one.Text, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "list --json says the same for scripts, without what the journal does not hold")]
    public async Task List_json()
    {
        await WriteAsync(Kernel, Base);
        using var document = JsonDocument.Parse((await RunAsync("list", "--json")).Text);
        JsonElement kernel = document.RootElement.GetProperty("kernels")[0];
        Assert.Equal(Kernel, kernel.GetProperty("kernel_id").GetString());
        JsonElement site = kernel.GetProperty("sites")[0];
        Assert.Equal("0xffffffff81000010", site.GetProperty("address").GetString());
        Assert.Equal(1000, site.GetProperty("exits_before").GetInt64());
        Assert.Equal(500, site.GetProperty("exits_saved_per_second").GetDouble());
        Assert.False(kernel.GetProperty("sites")[2].TryGetProperty("exits_before", out _));
    }

    [Theory(DisplayName = "A site is found by address, offset, symbol, a byte in its window, or an unambiguous beginning")]
    [InlineData("0xffffffff81000010")]
    [InlineData("FFFFFFFF81000010")]
    [InlineData("+0x10")]
    [InlineData("save_flags")]
    [InlineData("save_flags+0x0")]
    [InlineData("save_flags+0x2")]
    [InlineData("0xffffffff81000013")]
    [InlineData("save_f")]
    [InlineData("0xffffffff8100001")]
    public async Task Found(string site)
    {
        await WriteAsync(Kernel, Base);
        Ran ran = await RunAsync("show", site);
        Assert.StartsWith("0xffffffff81000010  save_flags+0x0\n", ran.Text.ReplaceLineEndings("\n"), StringComparison.Ordinal);
    }

    [Theory(DisplayName = "A site that is not there, or may be several, is one line and exit code 2")]
    [InlineData("0xffffffff81000099", "no site")]
    [InlineData("nothing", "no site")]
    [InlineData("save_", "2 sites")]
    [InlineData("", "no site")]
    public async Task Not_found(string site, string said)
    {
        await WriteAsync(Kernel, Base);
        foreach (string verb in new[] { "show", "disable", "enable" })
        {
            Ran ran = await RunAsync(verb, site);
            AssertUnusable(ran);
            Assert.Contains(said, ran.Error, StringComparison.Ordinal);
        }
    }

    [Fact(DisplayName = "The same site of two kernels needs the kernel's id")]
    public async Task Site_of_two_kernels()
    {
        await WriteAsync(Kernel, Base);
        await WriteAsync("fedcba9876543210", Base);
        Ran ran = await RunAsync("show", "save_flags");
        AssertUnusable(ran);
        Assert.Contains("--kernel-id", ran.Error, StringComparison.Ordinal);
        Assert.Contains("fedcba9876543210", (await RunAsync("show", "save_flags", "--kernel-id", "f")).Text, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "show has the code before and after, says that the implant is made again, and ends with the history")]
    public async Task Show()
    {
        await WriteAsync(Kernel, Base);
        string text = (await RunAsync("show", "save_flags")).Text.ReplaceLineEndings("\n");
        string[] parts = ["9c ", "pushfq", "e9 ?? ?? ?? ??", "jmp     implant", "made again", "vcpu.InterruptFlag", "jmp     save_flags+0x5",
            "history", "intended    transaction 1", "applied     transaction 1", "observed    1000 exits in 2.0 s"];
        int at = 0;
        foreach (string part in parts)
        {
            int found = text.IndexOf(part, at, StringComparison.Ordinal);
            Assert.True(found >= 0, $"{part} is not where it should be in:\n{text}");
            at = found;
        }
    }

    [Fact(DisplayName = "show says why a site was retired, aborted or refused")]
    public async Task Reasons()
    {
        await WriteAsync(Kernel, Base);
        Assert.Contains("retired: the guest changed it", (await RunAsync("show", "save_other")).Text, StringComparison.Ordinal);
        Assert.Contains("aborted     transaction 2: no room", (await RunAsync("show", "save_other")).Text, StringComparison.Ordinal);
        string refused = (await RunAsync("show", "native_cpuid")).Text;
        Assert.Contains("no template for cpuid", refused, StringComparison.Ordinal);
        Assert.Contains("0f a2", refused, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "show --json has windows, implant and history")]
    public async Task Show_json()
    {
        await WriteAsync(Kernel, Base);
        using var document = JsonDocument.Parse((await RunAsync("show", "save_flags", "--json")).Text);
        JsonElement window = document.RootElement.GetProperty("windows")[0];
        Assert.Equal("pushfq", window.GetProperty("before")[0].GetProperty("text").GetString());
        Assert.True(window.GetProperty("implant").GetProperty("regenerated").GetBoolean());
        Assert.Equal("intended", document.RootElement.GetProperty("history")[0].GetProperty("event").GetString());
    }

    [Fact(DisplayName = "disable is durable and keeps the patch from being replayed; enable undoes it; twice is once and says so")]
    public async Task Switches()
    {
        await WriteAsync(Kernel, Base);
        Assert.Contains("is disabled:", (await RunAsync("disable", "save_flags")).Text, StringComparison.Ordinal);
        int stored = (await HistoryAsync()).Events.Length;
        Ran again = await RunAsync("disable", "0xffffffff81000012");
        Assert.Equal(0, again.ExitCode);
        Assert.Contains("disabled already", again.Text, StringComparison.Ordinal);
        KernelHistory off = await HistoryAsync();
        Assert.Equal(stored, off.Events.Length);
        Assert.Empty(off.State.Replayable([new TemplateUse("pushf", 1)]).Patches);
        Assert.Contains("1 disabled", (await RunAsync("list")).Text, StringComparison.Ordinal);

        Assert.Contains("is enabled:", (await RunAsync("enable", "save_flags")).Text, StringComparison.Ordinal);
        Assert.Contains("is not disabled", (await RunAsync("enable", "save_flags")).Text, StringComparison.Ordinal);
        KernelHistory on = await HistoryAsync();
        Assert.Equal(stored + 1, on.Events.Length);
        Assert.Single(on.State.Replayable([new TemplateUse("pushf", 1)]).Patches);
    }

    [Fact(DisplayName = "enable also takes back a switch that lies on another byte of the window")]
    public async Task Enable_a_window()
    {
        await WriteAsync(Kernel, Base);
        await JournalEditor.SwitchAsync(JournalConnection.Parse(Journal), Kernel, 0x12, disabled: true, ControlSettings.Load(harness.SettingsPath));
        Assert.Contains("1 disabled", (await RunAsync("list")).Text, StringComparison.Ordinal);
        await RunAsync("enable", "save_flags");
        Assert.Empty((await HistoryAsync()).State.Disabled);
    }

    [Theory(DisplayName = "A journal that is not there is one line and exit code 2, and is not created")]
    [InlineData("list")]
    [InlineData("show", "x")]
    [InlineData("disable", "x")]
    [InlineData("enable", "x")]
    public async Task Missing(params string[] arguments)
    {
        AssertUnusable(await RunAsync(arguments));
        Assert.Empty(Directory.GetFiles(harness.Directory, "patches*"));
    }

    [Fact(DisplayName = "An empty journal is said to be empty, with exit code 0")]
    public async Task Empty()
    {
        await File.WriteAllBytesAsync(Journal, []);
        Ran ran = await RunAsync("list");
        Assert.Equal((0, ""), (ran.ExitCode, ran.Error));
        Assert.Equal($"the patch journal ({Journal}) holds no patches\n", ran.Text.ReplaceLineEndings("\n"));
    }

    [Fact(DisplayName = "A file that is no journal is one line and exit code 2, and is left as it is")]
    public async Task Damaged()
    {
        await File.WriteAllTextAsync(Journal, new string('x', 5000));
        AssertUnusable(await RunAsync("list"));
        Assert.Equal(new string('x', 5000), await File.ReadAllTextAsync(Journal));
    }

    [Theory(DisplayName = "Wrong usage is one line that names the right help")]
    [InlineData("patches", "see 'dmp patches --help'")]
    [InlineData("patches list", "see 'dmp patches list --help'")]
    [InlineData("patches show --journal x", "see 'dmp patches show --help'")]
    [InlineData("patches fly", "see 'dmp patches --help'")]
    public async Task Wrong_usage(string line, string said)
    {
        Ran ran = await harness.RunAsync(line.Split(' '));
        AssertUnusable(ran);
        Assert.Contains(said, ran.Error, StringComparison.Ordinal);
    }

    private static void AssertUnusable(Ran ran)
    {
        Assert.Equal(2, ran.ExitCode);
        Assert.StartsWith("dmp: ", ran.Error, StringComparison.Ordinal);
        Assert.Single(ran.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.Empty(ran.Text);
    }

    private Task<Ran> RunAsync(params string[] arguments) => harness.RunAsync(["patches", .. arguments, "--journal", Journal]);

    private async Task<KernelHistory> HistoryAsync() => (await JournalReader.ReadHistoriesAsync(
        JournalConnection.Parse(Journal), ControlSettings.Load(harness.SettingsPath)))[Kernel];

    /// <summary>Writes a patch that is applied, one that was retired after an attempt that failed, and a refusal.</summary>
    private async Task WriteAsync(string kernel, ulong kernelBase, string symbol = "save_flags+0x0", int templates = 1)
    {
        var settings = ControlSettings.Load(harness.SettingsPath);
        Config quiet = ConfigurationFactory.ParseString("akka { loggers = [], stdout-loglevel = OFF }");
        using var system = ActorSystem.Create("specs", quiet.WithFallback(settings.Configuration));
        IActorRef journal = system.ActorOf(JournalGuardian.Props(JournalConnection.Parse(Journal), kernel, settings));
        ImmutableArray<TemplateUse> uses = [.. Enumerable.Repeat(new TemplateUse("pushf", 1), templates)];
        var one = new JournaledPatch(0x10, [0x9c, 0x0f, 0x1f, 0x40, 0x00], 0x10, uses) { Symbol = symbol };
        var two = new JournaledPatch(0x20, [0x9c, 0xfa, 0x0f, 0x1f, 0x00], 0x20, [new TemplateUse("pushf", 1), new TemplateUse("cli", 1)])
        {
            Symbol = "save_other+0x10",
        };
        await AskAsync<JournalProtocol.Intended>(new JournalProtocol.Intend(1, [one]) { KernelBase = kernelBase });
        await AskAsync<JournalProtocol.Completed>(new JournalProtocol.Complete(2, 1, [0x10], []));
        await AskAsync<JournalProtocol.Intended>(new JournalProtocol.Intend(3, [two]) { KernelBase = kernelBase });
        await AskAsync<JournalProtocol.Completed>(
            new JournalProtocol.Complete(4, 2, [], [new JournalProtocol.AbortedPatch(0x20, "no room")]));
        await AskAsync<JournalProtocol.Recorded>(new JournalProtocol.Record(5,
        [
            new JournalEvent.PatchObserved(0x10, 1000, TimeSpan.FromSeconds(2)),
            new JournalEvent.SiteRetired(0x20, "the guest changed it"),
            new JournalEvent.PatchRefused(0x40, [0x0f, 0xa2], "no template for cpuid", ExitKind.Silent)
            {
                Symbol = "native_cpuid+0xf",
                KernelBase = kernelBase,
            },
        ]));
        await AskAsync<JournalProtocol.Closed>(new JournalProtocol.Close(6));
        await system.Terminate();

        async Task AskAsync<T>(JournalProtocol.IRequest request) =>
            Assert.IsType<T>(await journal.Ask(request, TimeSpan.FromMinutes(2)));
    }
}
