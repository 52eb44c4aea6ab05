using Dmp.Kvm;

namespace Dmp.Host.Specs;

public class DemoVerbSpecs
{
    [Fact(DisplayName = "demo builds the guest, shows its lines on stderr, and ends with a report on stdout")]
    public async Task Demo()
    {
        using var harness = new Harness { CreateMachine = _ => RunVerbSpecs.Guest("off", "::phase work::\r\nhello\r\n") };
        await WriteBuildAsync(harness, $"echo fetching >&2\necho kernel={harness.Kernel}\necho initrd={harness.Kernel}\n");
        Ran ran = await harness.RunAsync("demo");
        Assert.Equal(0, ran.ExitCode);
        Assert.Contains("fetching", ran.Error, StringComparison.Ordinal);
        Assert.Contains("  | hello", ran.Error, StringComparison.Ordinal);
        Assert.Contains("native_save_fl+0x0", ran.Text, StringComparison.Ordinal);
        Assert.Contains("work", ran.Text, StringComparison.Ordinal);
        Assert.Contains("./dmp run --kernel \"$kernel\"", ran.Text, StringComparison.Ordinal);
        Assert.Empty(ran.Output);
    }

    [Fact(DisplayName = "guest prints the two paths and nothing else")]
    public async Task Guest()
    {
        using var harness = new Harness();
        await WriteBuildAsync(harness, $"echo kernel={harness.Kernel}\necho initrd={harness.Kernel}\n");
        Ran ran = await harness.RunAsync("guest");
        Assert.Equal(0, ran.ExitCode);
        Assert.Equal($"kernel={harness.Kernel}\ninitrd={harness.Kernel}\n", ran.Text.ReplaceLineEndings("\n"));
    }

    [Theory(DisplayName = "A guest that cannot be built is said so, with exit code 2")]
    [InlineData("echo no network >&2\nexit 7", "ended with 7")]
    [InlineData("echo kernel=/nowhere/vmlinuz", "'kernel=' names no file")]
    public async Task Build_fails(string script, string said)
    {
        using var harness = new Harness();
        await WriteBuildAsync(harness, script);
        Ran ran = await harness.RunAsync("demo");
        Assert.Equal(2, ran.ExitCode);
        Assert.Contains(said, ran.Error, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "demo gets no guest where no machine could run it")]
    public async Task No_kvm()
    {
        using var harness = new Harness { RequireKvm = () => throw new HostUnsupportedException("/dev/kvm does not exist") };
        await WriteBuildAsync(harness, "echo fetching >&2\n");
        Ran ran = await harness.RunAsync("demo");
        Assert.Equal(3, ran.ExitCode);
        Assert.Equal("dmp: /dev/kvm does not exist", ran.Error.Trim());
    }

    private static Task WriteBuildAsync(Harness harness, string script) => File.WriteAllTextAsync(harness.PathOf("build"), script);
}
