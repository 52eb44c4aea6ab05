using Dmp.Kvm;

namespace Dmp.Host.Specs;

public sealed class CommandLineSpecs : IDisposable
{
    private readonly Harness harness = new();

    public void Dispose() => harness.Dispose();

    [Theory(DisplayName = "What cannot be understood is one line on stderr and exit code 2")]
    [InlineData("", "no verb")]
    [InlineData("fly", "unknown verb 'fly'")]
    [InlineData("--fly", "unknown verb '--fly'")]
    [InlineData("bench", "unknown verb 'bench'")]
    [InlineData("run", "--kernel")]
    [InlineData("run --kernel", "--kernel")]
    [InlineData("run --kernel KERNEL --fly", "--fly")]
    [InlineData("run --kernel KERNEL extra", "extra")]
    [InlineData("run --kernel /nowhere/vmlinuz", "/nowhere/vmlinuz")]
    [InlineData("run --kernel KERNEL --initrd /nowhere/initrd", "/nowhere/initrd")]
    [InlineData("run --kernel KERNEL --cpus 0", "--cpus 0 is not a number from 1 to 16")]
    [InlineData("run --kernel KERNEL --cpus 17", "--cpus")]
    [InlineData("run --kernel KERNEL --cpus two", "--cpus")]
    [InlineData("run --kernel KERNEL --memory 3X", "512M")]
    [InlineData("run --kernel KERNEL --memory 512", "a multiple of 2M")]
    [InlineData("run --kernel KERNEL --memory 1M", "a multiple of 2M")]
    [InlineData("run --kernel KERNEL --timeout 0", "--timeout 0")]
    [InlineData("run --kernel KERNEL --timeout soon", "--timeout soon")]
    [InlineData("run --kernel KERNEL --debug-exit 0x10000", "--debug-exit 0x10000")]
    [InlineData("run --kernel KERNEL --mode fast", "--mode fast")]
    [InlineData("run --kernel KERNEL --mode trap --journal file", "--journal is about patches")]
    [InlineData("run --kernel KERNEL --mode trap --no-replay", "--no-replay is about patches")]
    [InlineData("run --kernel KERNEL --mode trap --without-template cli", "--without-template is about patches")]
    [InlineData("run --kernel KERNEL --trace file", "--trace is not available in this version")]
    [InlineData("run --kernel KERNEL --report /nowhere/report.json", "/nowhere")]
    [InlineData("probe extra", "extra")]
    [InlineData("guest", "build is missing")]
    public async Task Wrong_usage(string line, string said)
    {
        string[] arguments = line.Replace("KERNEL", harness.Kernel, StringComparison.Ordinal)
            .Split(' ', StringSplitOptions.RemoveEmptyEntries);
        Ran ran = await harness.RunAsync(arguments);
        Assert.Equal(2, ran.ExitCode);
        Assert.Contains(said, ran.Error, StringComparison.Ordinal);
        AssertOneLine(ran);
    }

    [Fact(DisplayName = "An empty text for --until is refused")]
    public async Task Empty_until()
    {
        Ran ran = await harness.RunAsync("run", "--kernel", harness.Kernel, "--until", "");
        Assert.Equal(2, ran.ExitCode);
        AssertOneLine(ran);
    }

    [Theory(DisplayName = "A machine that cannot be created is one line with the exit code of its reason, and a report")]
    [InlineData("input", 2)]
    [InlineData("host", 3)]
    [InlineData("bug", 70)]
    public async Task Machine_cannot_be_created(string reason, int code)
    {
        using var failing = new Harness
        {
            CreateMachine = _ => throw (reason switch
            {
                "input" => new UnusableInputException("the\nreason"),
                "host" => new HostUnsupportedException("the\nreason"),
                _ => new InvalidOperationException("the\nreason"),
            }),
        };
        string report = failing.PathOf("report.json");
        Ran ran = await failing.RunAsync("run", "--kernel", failing.Kernel, "--report", report);
        Assert.Equal(code, ran.ExitCode);
        Assert.Contains("the reason", ran.Error, StringComparison.Ordinal);
        AssertOneLine(ran);
        Assert.Contains("\"vmm_failed\"", await File.ReadAllTextAsync(report), StringComparison.Ordinal);
    }

    [Theory(DisplayName = "Help is help, with exit code 0")]
    [InlineData("--help")]
    [InlineData("run --help")]
    public async Task Help(string line)
    {
        Ran ran = await harness.RunAsync(line.Split(' '));
        Assert.Equal(0, ran.ExitCode);
        Assert.Contains("Usage:\n  dmp", ran.Text.ReplaceLineEndings("\n"), StringComparison.Ordinal);
    }

    [Fact(DisplayName = "probe prints every finding and strategy; --json prints them for scripts")]
    public async Task Probe()
    {
        Ran lines = await harness.RunAsync("probe");
        Assert.Equal("cpl0: emulated (stubs stay short)\nstrategy: shadow writes in the VM\n", lines.Text.ReplaceLineEndings("\n"));
        Ran json = await harness.RunAsync("probe", "--json");
        Assert.Contains("\"consequence\": \"stubs stay short\"", json.Text, StringComparison.Ordinal);
    }

    private static void AssertOneLine(Ran ran)
    {
        Assert.StartsWith("dmp: ", ran.Error, StringComparison.Ordinal);
        Assert.Single(ran.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.Empty(ran.Output);
        Assert.Empty(ran.Text);
    }
}
