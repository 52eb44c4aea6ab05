using System.Text.Json;
using Dmp.Kvm.Machine;

namespace Dmp.Host.Specs;

public class RunVerbSpecs
{
    private static readonly string[] NoArguments = [];

    public static TheoryData<string, string, string[], int, string> Endings => new()
    {
        { "off", "bye\n", NoArguments, 0, "powered_off" },
        { "reset", "bye\n", NoArguments, 0, "powered_off" },
        { "exit", "", ["--debug-exit", "0xf4"], 7, "powered_off" },
        { "failed", "", NoArguments, 4, "guest_failed" },
        { "reset", "Kernel panic - not syncing: x\n", NoArguments, 4, "guest_failed" },
        { "none", "Kernel panic - not syncing: x\n", NoArguments, 4, "guest_failed" },
        { "none", "login: ", ["--until", "login:"], 0, "until" },
        { "none", "", ["--timeout", "0.05"], 5, "timeout" },
        { "throws", "", NoArguments, 70, "vmm_failed" },
    };

    [Theory(DisplayName = "Every way a run ends has its exit code and its report; stdout has the guest's bytes and nothing else")]
    [MemberData(nameof(Endings))]
    public async Task Every_ending(string ending, string text, string[] arguments, int code, string outcome)
    {
        FakeGuest guest = Guest(ending, text);
        using var harness = new Harness { CreateMachine = _ => guest };
        string report = harness.PathOf("report.json");
        Ran ran = await harness.RunAsync(["run", "--kernel", harness.Kernel, "--report", report, .. arguments]);
        Assert.Equal(code, ran.ExitCode);
        Assert.Equal(text, ran.Output);
        Assert.Empty(ran.Text);
        Assert.True(guest.Disposed);
        using var json = JsonDocument.Parse(await File.ReadAllTextAsync(report));
        Assert.Equal(outcome, json.RootElement.GetProperty("outcome").GetString());
        Assert.Equal(code is 4 or 5 or 70, ran.Error.Contains("rip=0x1234", StringComparison.Ordinal));
        Assert.Equal([harness.Kernel, report], Directory.GetFiles(harness.Directory).OrderDescending());
    }

    [Fact(DisplayName = "The configuration is what the command line says")]
    public async Task Configuration()
    {
        MachineConfiguration? configuration = null;
        using var harness = new Harness
        {
            CreateMachine = given =>
            {
                configuration = given;
                return Guest("off", "");
            },
        };
        await harness.RunAsync(
            "run", "--kernel", harness.Kernel, "--initrd", harness.Kernel, "--cmdline", "a b", "--cpus", "2", "--memory", "1G", "--debug-exit", "244");
        Assert.Equal(
            new MachineConfiguration
            {
                KernelPath = harness.Kernel,
                InitrdPath = harness.Kernel,
                CommandLine = "a b",
                Cpus = 2,
                MemoryBytes = 1UL << 30,
                DebugExitPort = 0xf4,
                Patching = true,
                DisabledTemplates = configuration!.DisabledTemplates,
            },
            configuration);
        Assert.Empty(configuration.DisabledTemplates);
    }

    [Fact(DisplayName = "How many vCPUs is the machine's to decide unless the command line says it, and the report has what it decided")]
    public async Task Usual_cpus()
    {
        MachineConfiguration? configuration = null;
        using var harness = new Harness
        {
            CreateMachine = given =>
            {
                configuration = given;
                return Guest("off", "");
            },
        };
        string report = Path.Combine(harness.Directory, "report.json");
        await harness.RunAsync("run", "--kernel", harness.Kernel, "--report", report);
        Assert.Null(configuration!.Cpus);
        using var json = JsonDocument.Parse(await File.ReadAllTextAsync(report));
        Assert.Equal(1, json.RootElement.GetProperty("guest").GetProperty("cpus").GetInt32());
    }

    [Theory(DisplayName = "Only --mode trap makes no patches, and templates that are not wanted are not used")]
    [InlineData("", true, "")]
    [InlineData("--mode dmp", true, "")]
    [InlineData("--mode trap", false, "")]
    [InlineData("--without-template cli --without-template sti", true, "cli sti")]
    public async Task Patching(string options, bool patching, string disabled)
    {
        MachineConfiguration? configuration = null;
        using var harness = new Harness
        {
            CreateMachine = given =>
            {
                configuration = given;
                return Guest("off", "");
            },
        };
        await harness.RunAsync(["run", "--kernel", harness.Kernel, .. options.Split(' ', StringSplitOptions.RemoveEmptyEntries)]);
        Assert.Equal(patching, configuration!.Patching);
        Assert.Equal(disabled, string.Join(' ', configuration.DisabledTemplates.Order(StringComparer.Ordinal)));
    }

    [Fact(DisplayName = "Piped input reaches the guest, and its end is not the end of the run")]
    public async Task Input_reaches_the_guest()
    {
        using var harness = new Harness
        {
            Input = "poweroff\n",
            CreateMachine = _ => new FakeGuest("# ", ending: null) { WaitsFor = "poweroff\n" },
        };
        Ran ran = await harness.RunAsync("run", "--kernel", harness.Kernel);
        Assert.Equal(0, ran.ExitCode);
        Assert.Equal("# ", ran.Output);
    }

    [Fact(DisplayName = "Ctrl-a x ends the run")]
    public async Task Escape_ends_the_run()
    {
        using var harness = new Harness { Input = "text\u0001x", CreateMachine = _ => Guest("none", "# ") };
        Ran ran = await harness.RunAsync("run", "--kernel", harness.Kernel);
        Assert.Equal(0, ran.ExitCode);
        Assert.Empty(ran.Error);
    }

    [Fact(DisplayName = "The report has the fields of the contract; what was not measured is absent, not null and not zero")]
    public async Task Report_shape()
    {
        using var harness = new Harness { CreateMachine = _ => Guest("off", "::phase work::\n") };
        string report = harness.PathOf("report.json");
        await harness.RunAsync("run", "--kernel", harness.Kernel, "--report", report);
        using var json = JsonDocument.Parse(await File.ReadAllTextAsync(report));
        JsonElement root = json.RootElement;
        Assert.Equal(
            "schema outcome detail host guest wall_ms exits time phases sites patches quiesce_us vcpus unowned_ports", Names(root));
        Assert.Equal(1, root.GetProperty("schema").GetInt32());
        Assert.Equal("cpl0 exit_us", Names(root.GetProperty("host")));
        Assert.Equal("kernel kernel_id cpus memory_bytes mode", Names(root.GetProperty("guest")));
        Assert.Equal(3, root.GetProperty("exits").GetProperty("total").GetInt64());
        Assert.Equal(
            "privileged silent page_table hidden_fault guest_fault syscall io code_scan code_write kick halt other",
            Names(root.GetProperty("exits").GetProperty("by_kind")));
        Assert.Equal(["boot", "work"], root.GetProperty("phases").EnumerateArray().Select(phase => phase.GetProperty("name").GetString()));
        Assert.All(root.GetProperty("phases").EnumerateArray(), phase => Assert.StartsWith("name wall_ms exits", Names(phase), StringComparison.Ordinal));
        Assert.Equal("applied replayed refused reverted aborted in_force", Names(root.GetProperty("patches")));
        Assert.Equal("count", Names(root.GetProperty("quiesce_us")));
        Assert.Equal("index exits halted_ms wake_us", Names(Assert.Single(root.GetProperty("vcpus").EnumerateArray())));
        Assert.Equal("count p50 p99 max", Names(root.GetProperty("vcpus")[0].GetProperty("wake_us")));
        Assert.Equal(12.5, root.GetProperty("vcpus")[0].GetProperty("wake_us").GetProperty("max").GetDouble());
        JsonElement[] sites = [.. root.GetProperty("sites").EnumerateArray()];
        Assert.Equal("rip symbol kind exits", Names(sites[0]));
        Assert.Equal("0x1000", sites[0].GetProperty("rip").GetString());
        Assert.Equal("native_save_fl+0x0", sites[0].GetProperty("symbol").GetString());
        Assert.Equal("silent", sites[0].GetProperty("kind").GetString());
        Assert.Equal("rip kind exits", Names(sites[1]));
        Assert.Equal(3, root.GetProperty("unowned_ports").GetProperty("0x80").GetInt64());
        Assert.Equal(9, root.GetProperty("time").GetProperty("inside_kvm_run_ms").GetDouble());
    }

    [Fact(DisplayName = "The time until the text of --until stood on the console is in the report")]
    public async Task Until_in_report()
    {
        using var harness = new Harness { CreateMachine = _ => Guest("none", "login:") };
        string report = harness.PathOf("report.json");
        await harness.RunAsync("run", "--kernel", harness.Kernel, "--until", "login:", "--report", report);
        using var json = JsonDocument.Parse(await File.ReadAllTextAsync(report));
        Assert.True(json.RootElement.TryGetProperty("until_ms", out _));
    }

    internal static FakeGuest Guest(string ending, string text) => ending switch
    {
        "off" => new FakeGuest(text, new VcpuStop.PoweredOff()),
        "reset" => new FakeGuest(text, new VcpuStop.Reset("port 0xcf9")),
        "exit" => new FakeGuest(text, new VcpuStop.DebugExit(3)),
        "failed" => new FakeGuest(text, new VcpuStop.GuestFailed("triple fault", "rip=0x1234")),
        "throws" => new FakeGuest(text, null) { Failure = new InvalidOperationException("bug") },
        _ => new FakeGuest(text, null),
    };

    private static string Names(JsonElement element) => string.Join(' ', element.EnumerateObject().Select(property => property.Name));
}
