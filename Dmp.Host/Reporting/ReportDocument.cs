using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Dmp.Host.Reporting;

/// <summary>
/// The report as scripts read it (--report). A figure that was not measured is null here and absent in the file, never zero.
/// </summary>
internal sealed record ReportDocument
{
    public int Schema { get; init; } = 1;

    public required string Outcome { get; init; }

    public required string Detail { get; init; }

    public HostSection? Host { get; init; }

    public required GuestSection Guest { get; init; }

    public double? WallMs { get; init; }

    public double? UntilMs { get; init; }

    public ExitSection? Exits { get; init; }

    /// <summary>Time of all vCPU threads inside and outside of KVM_RUN.</summary>
    public TimeSection? Time { get; init; }

    public IReadOnlyList<PhaseSection>? Phases { get; init; }

    public IReadOnlyList<SiteSection>? Sites { get; init; }

    /// <summary>What patching came to.</summary>
    public PatchSection? Patches { get; init; }

    /// <summary>How long the world was stopped for patch transactions, in microseconds.</summary>
    public QuiesceSection? QuiesceUs { get; init; }

    /// <summary>What each vCPU cost.</summary>
    public IReadOnlyList<VcpuSection>? Vcpus { get; init; }

    /// <summary>Accesses to ports that no device answered.</summary>
    public IReadOnlyDictionary<string, long>? UnownedPorts { get; init; }

    /// <summary>State of the vCPUs, after a failure.</summary>
    public IReadOnlyList<VcpuStateSection>? VcpuStates { get; init; }

    /// <summary>Steps of the shutdown that did not end in time.</summary>
    public IReadOnlyList<string>? Unfinished { get; init; }
}

internal sealed record HostSection
{
    public string? Cpl0 { get; init; }

    public string? HostPageTableWrites { get; init; }

    public double? ExitUs { get; init; }

    public IReadOnlyList<string>? Strategies { get; init; }
}

internal sealed record GuestSection
{
    public required string Kernel { get; init; }

    public string? KernelId { get; init; }

    public required int? Cpus { get; init; }

    public required ulong MemoryBytes { get; init; }

    public required string Mode { get; init; }
}

internal sealed record ExitSection(long Total, IReadOnlyDictionary<string, long> ByKind);

internal sealed record TimeSection(double InsideKvmRunMs, double OutsideKvmRunMs);

internal sealed record PhaseSection
{
    public required string Name { get; init; }

    public required double WallMs { get; init; }

    public required ExitSection Exits { get; init; }

    public TimeSection? Time { get; init; }
}

internal sealed record SiteSection
{
    public required string Rip { get; init; }

    public string? Symbol { get; init; }

    public string? Instruction { get; init; }

    public required string Kind { get; init; }

    public required long Exits { get; init; }

    public string? State { get; init; }

    public string? Template { get; init; }

    public string? Reason { get; init; }
}

internal sealed record PatchSection(int Applied, int Replayed, int Refused, int Reverted, int Aborted, int InForce)
{
    /// <summary>Patches that were, at the end, in the guest's code as they should be and in the journal as applied.</summary>
    public int? Verified { get; init; }

    /// <summary>Patches in force that were not.</summary>
    public int? Mismatched { get; init; }
}

internal sealed record QuiesceSection
{
    public required int Count { get; init; }

    public double? P50 { get; init; }

    public double? P99 { get; init; }

    public double? Max { get; init; }
}

internal sealed record VcpuSection
{
    public required int Index { get; init; }

    public required long Exits { get; init; }

    /// <summary>How long the vCPU was halted.</summary>
    public double? HaltedMs { get; init; }

    /// <summary>How long it took from what ended a halt to guest code, in microseconds.</summary>
    public WakeSection? WakeUs { get; init; }
}

internal sealed record WakeSection(long Count, double P50, double P99, double Max);

internal sealed record VcpuStateSection(int Vcpu, string State);

/// <summary>Names and forms of the report in JSON.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower,
    DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    WriteIndented = true)]
[JsonSerializable(typeof(ReportDocument))]
[JsonSerializable(typeof(Kvm.Probe.ProbeReport))]
internal sealed partial class ReportJson : JsonSerializerContext
{
    /// <summary>For files and terminals: the default also escapes what is only dangerous inside of HTML, such as + and '.</summary>
    public static ReportJson Plain => field ??= new(new JsonSerializerOptions(Default.Options)
    {
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    });
}
