using System.Diagnostics;
using Dmp.Kvm;

namespace Dmp.Host.Demo;

/// <summary>Where the demo guest is.</summary>
/// <param name="Kernel">Path of its kernel.</param>
/// <param name="Initrd">Path of its initial RAM disk.</param>
internal sealed record GuestImages(string Kernel, string Initrd);

/// <summary>Gets the demo guest with the script guest/build, which says on stdout where it is and on stderr how far it is.</summary>
internal static class GuestBuild
{
    /// <summary>What stands before the kernel's path.</summary>
    public const string KernelKey = "kernel=";

    /// <summary>What stands before the initial RAM disk's path.</summary>
    public const string InitrdKey = "initrd=";

    /// <summary>Runs the script; it does nothing when the guest is there.</summary>
    /// <exception cref="UnusableInputException">There is no guest afterwards.</exception>
    public static async Task<GuestImages> RunAsync(HostEnvironment host)
    {
        if (!File.Exists(host.GuestBuildPath))
        {
            throw new UnusableInputException($"{host.GuestBuildPath} is missing; run ./dmp from a complete checkout");
        }

        var start = new ProcessStartInfo("bash", [host.GuestBuildPath])
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            UseShellExecute = false,
        };
        using Process process = Process.Start(start)
            ?? throw new UnusableInputException("bash cannot be started; it is needed to build the demo guest");
        Task errors = ForwardAsync(process.StandardError, host.Error);
        string output = await process.StandardOutput.ReadToEndAsync().ConfigureAwait(false);
        await errors.ConfigureAwait(false);
        await process.WaitForExitAsync().ConfigureAwait(false);
        if (process.ExitCode != 0)
        {
            throw new UnusableInputException(
                $"the demo guest was not built: {host.GuestBuildPath} ended with {process.ExitCode}; it says above what it needs");
        }

        return new GuestImages(PathIn(output, KernelKey), PathIn(output, InitrdKey));
    }

    private static async Task ForwardAsync(TextReader from, TextWriter to)
    {
        while (await from.ReadLineAsync().ConfigureAwait(false) is { } line)
        {
            await to.WriteLineAsync(line).ConfigureAwait(false);
        }
    }

    private static string PathIn(string output, string key)
    {
        string? path = output.Split('\n')
            .LastOrDefault(line => line.StartsWith(key, StringComparison.Ordinal))?[key.Length..].Trim();
        return File.Exists(path)
            ? path
            : throw new UnusableInputException($"guest/build did not say where the guest is ('{key}' names no file); remove what it built and try again");
    }
}
