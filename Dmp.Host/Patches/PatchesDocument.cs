using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Dmp.Host.Patches;

/// <summary>What <c>dmp patches list --json</c> prints. What the journal does not hold is null here and absent there, never zero.</summary>
internal sealed record PatchesDocument(int Schema, string Journal, IReadOnlyList<KernelSection> Kernels);

internal sealed record KernelSection(string KernelId, string? KernelBase, IReadOnlyList<PatchSummarySection> Sites);

internal sealed record PatchSummarySection
{
    public string? Address { get; init; }

    public required string Offset { get; init; }

    public string? Symbol { get; init; }

    public required string State { get; init; }

    public string? Template { get; init; }

    public string? Reason { get; init; }

    /// <summary>Exits counted at the site before it was patched.</summary>
    public long? ExitsBefore { get; init; }

    /// <summary>Time in which they were counted.</summary>
    public double? ExitsBeforeMs { get; init; }

    /// <summary>What a patch in force saves, by the rate before it.</summary>
    public double? ExitsSavedPerSecond { get; init; }
}

/// <summary>What <c>dmp patches show</c> knows: its JSON, and what its text is written from.</summary>
internal sealed record PatchDocument(
    int Schema,
    string KernelId,
    string? KernelBase,
    PatchSummarySection Site,
    IReadOnlyList<WindowSection> Windows,
    RefusalSection? Refusal,
    IReadOnlyList<HistorySection> History);

/// <summary>A window that was patched for the site.</summary>
internal sealed record WindowSection
{
    public string? Address { get; init; }

    public required string Offset { get; init; }

    public required string State { get; init; }

    public string? Reason { get; init; }

    public required IReadOnlyList<TemplateSection> Templates { get; init; }

    public required IReadOnlyList<CodeLine> Before { get; init; }

    public required IReadOnlyList<CodeLine> After { get; init; }

    public IReadOnlyList<CodeLine>? SpringboardBefore { get; init; }

    public IReadOnlyList<CodeLine>? SpringboardAfter { get; init; }

    public required ImplantSection Implant { get; init; }
}

internal sealed record TemplateSection(string Name, int Version);

/// <summary>The implant, which the journal does not hold.</summary>
/// <param name="Regenerated">Whether it was made again from what the journal holds.</param>
/// <param name="Address">Where it is shown; each run has it elsewhere.</param>
/// <param name="Reason">Why it was not made again.</param>
/// <param name="Code">Its code.</param>
internal sealed record ImplantSection(bool Regenerated, string? Address, string? Reason, IReadOnlyList<CodeLine>? Code);

internal sealed record CodeLine(string Address, string Bytes, string Text);

internal sealed record RefusalSection(string Reason, string Kind, IReadOnlyList<CodeLine> Instruction);

internal sealed record HistorySection(DateTime At, string Event, string? Detail);

/// <summary>Names and forms of these documents in JSON: those of the report.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower,
    DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    WriteIndented = true)]
[JsonSerializable(typeof(PatchesDocument))]
[JsonSerializable(typeof(PatchDocument))]
internal sealed partial class PatchesJson : JsonSerializerContext
{
    /// <summary>For files and terminals: templates are joined by a plus sign, which the default escapes.</summary>
    public static PatchesJson Plain => field ??= new(new JsonSerializerOptions(Default.Options)
    {
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    });
}
