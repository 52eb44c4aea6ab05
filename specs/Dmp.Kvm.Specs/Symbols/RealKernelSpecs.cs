using Dmp.Kvm.Boot;
using Dmp.Kvm.Specs.Boot;
using Dmp.Kvm.Symbols;

namespace Dmp.Kvm.Specs.Symbols;

/// <summary>
/// A real kernel: $DMP_GUEST_KERNEL, or the newest vmlinuz in the cache of the demo guest.
/// </summary>
public class RealKernelSpecs
{
    private const int RamMebibytes = 256;

    [SkippableFact(DisplayName = "A real kernel is loaded and its symbols are found")]
    public void RealKernel()
    {
        string path = FindKernel();
        var ram = new ArrayRam(RamMebibytes);
        BootState state;
        using (KernelImage kernel = KernelImage.Open(path))
        {
            state = KernelLoader.Load(ram, kernel, new BootRequest { CommandLine = "console=ttyS0" });
        }

        KernelSymbols symbols = KernelSymbols.Find(ram, state)!;
        Assert.NotNull(symbols);
        foreach (string name in new[] { "native_save_fl", "start_kernel", "init_task" })
        {
            Assert.True(symbols.TryFind(name, out ulong address));
            Assert.Equal($"{name}+0x0", symbols.Describe(address));
        }

        Assert.True(symbols.TryFind("_text", out ulong text));
        Assert.Equal(state.KernelVirtualBase.Value, text);
    }

    private static string FindKernel()
    {
        string? path = Environment.GetEnvironmentVariable("DMP_GUEST_KERNEL");
        if (string.IsNullOrEmpty(path))
        {
            path = GuestDirectories().Where(Directory.Exists).SelectMany(d => Directory.EnumerateFiles(d, "vmlinuz", SearchOption.AllDirectories))
                .MaxBy(File.GetLastWriteTimeUtc);
        }

        Skip.If(!File.Exists(path), "no guest kernel: set DMP_GUEST_KERNEL, or run ./dmp guest");
        return path!;
    }

    private static IEnumerable<string> GuestDirectories()
    {
        if (Environment.GetEnvironmentVariable("DMP_GUEST_DIR") is { Length: > 0 } directory)
        {
            return [directory];
        }

        string cache = Environment.GetEnvironmentVariable("XDG_CACHE_HOME") is { Length: > 0 } xdg
            ? xdg
            : Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".cache");
        return [Path.Combine(cache, "dmp", "guest")];
    }
}
