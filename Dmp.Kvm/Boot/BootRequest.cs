namespace Dmp.Kvm.Boot;

/// <summary>What a kernel is started with.</summary>
public sealed record BootRequest
{
    /// <summary>The command line, in ASCII.</summary>
    public string CommandLine { get; init; } = "";

    /// <summary>Path of the initial RAM disk, or null for none.</summary>
    public string? InitrdPath { get; init; }

    /// <summary>Number of vCPUs that the guest is told of.</summary>
    public int Cpus { get; init; } = 1;
}
