using System.Diagnostics;

namespace Dmp.Host.Specs.RunningGuests;

/// <summary>The Debian guest that guest/build makes and caches.</summary>
internal static class DemoGuest
{
    private static readonly Lazy<(string? Kernel, string? Initrd, string Trouble)> Built = new(Build);

    public static string Kernel => Get().Kernel;

    public static string Initrd => Get().Initrd;

    /// <summary>The project's root.</summary>
    public static string Root { get; } = FindRoot();

    /// <summary>Skips the spec where no guest can run.</summary>
    public static (string Kernel, string Initrd) Get()
    {
        Skip.IfNot(HasKvm(), "no /dev/kvm that this user can open");
        Skip.If(Built.Value.Kernel is null || Built.Value.Initrd is null, Built.Value.Trouble);
        return (Built.Value.Kernel!, Built.Value.Initrd!);
    }

    private static bool HasKvm()
    {
        try
        {
            using FileStream device = new("/dev/kvm", FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, bufferSize: 0);
            return true;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }

    private static (string? Kernel, string? Initrd, string Trouble) Build()
    {
        var start = new ProcessStartInfo("bash", [Path.Combine(Root, "guest", "build")])
        {
            RedirectStandardOutput = true,
            UseShellExecute = false,
        };
        using Process process = Process.Start(start)!;
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return process.ExitCode == 0
            ? (PathIn(output, "kernel="), PathIn(output, "initrd="), "guest/build names no kernel and initrd")
            : (null, null, $"no guest: guest/build ended with {process.ExitCode}");
    }

    private static string? PathIn(string output, string key) =>
        output.Split('\n').LastOrDefault(line => line.StartsWith(key, StringComparison.Ordinal))?[key.Length..].Trim();

    private static string FindRoot()
    {
        DirectoryInfo? directory = new(AppContext.BaseDirectory);
        while (directory is not null && !File.Exists(Path.Combine(directory.FullName, "Dmp.sln")))
        {
            directory = directory.Parent;
        }

        return directory?.FullName ?? throw new InvalidOperationException("the specs run outside of the project");
    }
}
