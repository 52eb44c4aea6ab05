namespace Dmp.Kvm.Boot;

/// <summary>What a kernel is started with.</summary>
public sealed record BootRequest
{
    /// <summary>The command line, in ASCII.</summary>
    public string CommandLine { get; init; } = "";

    /// <summary>Path of the initial RAM disk, which is the module of a multiboot kernel, or null for none.</summary>
    public string? InitrdPath { get; init; }

    /// <summary>Whether a bzImage is entered in 32-bit mode, also if it has a 64-bit entry.</summary>
    public bool Use32BitEntry { get; init; }

    /// <summary>Number of vCPUs that the guest is told of.</summary>
    public int Cpus { get; init; } = 1;
}
