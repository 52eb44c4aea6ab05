using System.Diagnostics;
using System.Globalization;
using Dmp.Kvm.Boot;
using Dmp.Kvm.Specs.Boot;
using Dmp.Kvm.Symbols;

namespace Dmp.Kvm.Specs.Symbols;

/// <summary>
/// A real kernel, when there is one: $DMP_GUEST_KERNEL, or vmlinuz* in the guest cache. With $DMP_GUEST_SYSTEM_MAP (Debian's
/// -dbg package has it) every symbol is compared.
/// </summary>
public class RealKernelSpecs
{
    private const int RamMebibytes = 256;

    [SkippableFact(DisplayName = "A real kernel is loaded in seconds and its symbols are found")]
    public void RealKernel()
    {
        string path = FindKernel();
        var ram = new ArrayRam(RamMebibytes);
        var watch = Stopwatch.StartNew();
        BootState state;
        using (KernelImage kernel = KernelImage.Open(path))
        {
            state = LinuxLoader.Load(ram, kernel, new BootRequest { CommandLine = "console=ttyS0" });
        }

        Assert.InRange(watch.Elapsed, TimeSpan.Zero, TimeSpan.FromSeconds(10));
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

    [SkippableFact(DisplayName = "Every symbol of a real kernel's System.map is found at its address")]
    public void SystemMap()
    {
        string path = FindKernel();
        string? mapPath = Environment.GetEnvironmentVariable("DMP_GUEST_SYSTEM_MAP");
        Skip.If(string.IsNullOrEmpty(mapPath), "DMP_GUEST_SYSTEM_MAP does not name the kernel's System.map");

        var ram = new ArrayRam(RamMebibytes);
        KernelSymbols symbols;
        using (KernelImage kernel = KernelImage.Open(path))
        {
            symbols = KernelSymbols.Find(ram, LinuxLoader.Load(ram, kernel, new BootRequest()))!;
        }

        ILookup<ulong, string> map = File.ReadLines(mapPath!)
            .Select(line => line.Split(' '))
            .ToLookup(parts => ulong.Parse(parts[0], NumberStyles.HexNumber, CultureInfo.InvariantCulture), parts => parts[2]);
        int compared = 0;
        foreach (IGrouping<ulong, string> names in map)
        {
            if (symbols.Describe(names.Key) is not { } described)
            {
                continue;
            }

            // kallsyms leaves some symbols out: what it has at this very address must be one of the map's.
            if (described.EndsWith("+0x0", StringComparison.Ordinal))
            {
                Assert.Contains(described[..^"+0x0".Length], names);
                compared++;
            }
        }

        Assert.InRange(compared, symbols.Count / 2, int.MaxValue);
        Assert.True(symbols.TryFind("cpu_hw_events", out ulong percpu));
        Assert.Contains("cpu_hw_events", map[percpu]);
    }

    private static string FindKernel()
    {
        string? path = Environment.GetEnvironmentVariable("DMP_GUEST_KERNEL");
        if (string.IsNullOrEmpty(path))
        {
            path = GuestDirectories().Where(Directory.Exists).SelectMany(d => Directory.EnumerateFiles(d, "vmlinuz*")).FirstOrDefault();
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
