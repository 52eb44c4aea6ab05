namespace Dmp.Host.Specs.RunningGuests;

/// <summary>Files that are no kernels, and machines that are too small: one line, exit code 2, and no more.</summary>
[Collection(GuestCollection.Name)]
public class UnusableInputSpecs
{
    [SkippableFact(DisplayName = "A kernel that is not there")]
    public async Task Missing()
    {
        _ = DemoGuest.Kernel;
        string error = await Refusal(["--kernel", "/nonexistent/vmlinuz"]);
        Assert.Contains("/nonexistent/vmlinuz", error, StringComparison.Ordinal);
        Assert.Contains("no such file", error, StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "A kernel of random bytes")]
    public async Task Noise()
    {
        _ = DemoGuest.Kernel;
        using var directory = new TemporaryDirectory();
        string path = Path.Combine(directory.Path, "noise");
        byte[] noise = new byte[1 << 20];
        new Random(1).NextBytes(noise);
        await File.WriteAllBytesAsync(path, noise);

        Assert.Contains(path, await Refusal(["--kernel", path]), StringComparison.Ordinal);
    }

    [SkippableTheory(DisplayName = "A bzImage that was cut off")]
    [InlineData(100)]
    [InlineData(0x300)]
    [InlineData(100_000)]
    [InlineData(5_000_000)]
    public async Task Truncated(int length)
    {
        byte[] kernel = await File.ReadAllBytesAsync(DemoGuest.Kernel);
        using var directory = new TemporaryDirectory();
        string path = Path.Combine(directory.Path, "vmlinuz");
        await File.WriteAllBytesAsync(path, kernel.AsMemory(0, length));

        Assert.Contains(path, await Refusal(["--kernel", path]), StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "A RAM disk that is not there")]
    public async Task MissingInitrd() =>
        Assert.Contains("/nonexistent/initrd", await Refusal(["--kernel", DemoGuest.Kernel, "--initrd", "/nonexistent/initrd"]), StringComparison.Ordinal);

    [SkippableFact(DisplayName = "A RAM disk that is larger than the memory")]
    public async Task LargeInitrd()
    {
        string kernel = DemoGuest.Kernel;
        using var directory = new TemporaryDirectory();
        string path = Path.Combine(directory.Path, "initrd");
        await using (FileStream sparse = File.Create(path))
        {
            sparse.SetLength(300L << 20);
        }

        string error = await Refusal(["--kernel", kernel, "--initrd", path, "--memory", "256M"]);
        Assert.Contains("--memory", error, StringComparison.Ordinal);
    }

    [SkippableTheory(DisplayName = "Memory that is too little for the kernel, or no size at all")]
    [InlineData("2M")]
    [InlineData("32M")]
    [InlineData("511K")]
    [InlineData("lots")]
    [InlineData("0")]
    public async Task Memory(string size) =>
        Assert.Contains("--memory", await Refusal(["--kernel", DemoGuest.Kernel, "--memory", size]), StringComparison.Ordinal);

    private static async Task<string> Refusal(string[] options)
    {
        DmpResult result = await DmpProcess.RunAsync(["run", "--mode", "trap", "--timeout", "60", .. options]);
        result.ShouldExitWith(2);
        Assert.Empty(result.Output);
        Assert.StartsWith("dmp: ", result.Error, StringComparison.Ordinal);
        string line = Assert.Single(result.Error.TrimEnd('\n').Split('\n'));
        Assert.DoesNotContain("   at ", line, StringComparison.Ordinal);
        Assert.DoesNotContain("Exception", line, StringComparison.Ordinal);
        return line;
    }
}
