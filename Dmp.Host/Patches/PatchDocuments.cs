using System.Collections.Immutable;
using System.Globalization;
using Dmp.Actors.Journal;
using Dmp.Host.Reporting;
using Dmp.Kvm.Patching;

namespace Dmp.Host.Patches;

/// <summary>Turns what a journal holds into documents. Pure.</summary>
internal static class PatchDocuments
{
    /// <summary>Where an x86-64 Linux kernel lies unless it was built otherwise; for journals that do not say.</summary>
    public const ulong UsualKernelBase = 0xFFFF_FFFF_8100_0000;

    private const int Schema = 1;

    /// <summary>The list.</summary>
    public static PatchesDocument List(string journal, ImmutableArray<PatchSite> sites) => new(
        Schema,
        journal,
        [
            .. sites.GroupBy(site => site.KernelId)
                .Select(kernel => new KernelSection(kernel.Key, Base(kernel.First()), [.. kernel.Select(Summary)])),
        ]);

    /// <summary>All about a site.</summary>
    public static PatchDocument Show(PatchSite site)
    {
        JournalState state = site.Kernel.State;
        ulong kernelBase = state.KernelBase != 0 ? state.KernelBase : UsualKernelBase;
        Func<ulong, string?> symbol = Symbols(site, kernelBase);
        IEnumerable<(JournalEntry Entry, string State, string Reason)> entries = site.Windows
            .Where(window => window.Entry is not null)
            .Select(window => (window.Entry!, PatchSite.StateName(window.State), window.Reason))
            .Concat(state.Variants.Where(variant => variant.Patch.SiteOffset == site.Offset).Select(variant => (
                variant,
                state.IsDisabled(variant.Patch) ? PatchSite.StateName(SiteState.Disabled) : PatchSite.StateName(SiteState.Applied),
                "made for other bytes at the same place: a kernel changes its code while it boots")));
        return new PatchDocument(
            Schema,
            site.KernelId,
            Base(site),
            Summary(site),
            [.. entries.Select(entry => Window(site, entry.Entry, entry.State, entry.Reason, kernelBase, symbol))],
            Refusal(site, kernelBase, symbol),
            [.. site.Kernel.Of(site.Offset).Select(recorded => Event(recorded, site))]);
    }

    private static PatchSummarySection Summary(PatchSite site) => new()
    {
        Address = site.Address is { } address ? PatchSite.Hexadecimal(address) : null,
        Offset = PatchSite.OffsetText(site.Offset),
        Symbol = site.Symbol,
        State = site.State,
        Template = site.Template,
        Reason = Text(site.Main.Reason),
        ExitsBefore = site.Main.Entry is { ExitsPerSecondBefore: not null } seen ? seen.ExitsBefore : null,
        ExitsBeforeMs = site.Main.Entry is { ExitsPerSecondBefore: not null } counted ? counted.PeriodBefore.TotalMilliseconds : null,
        ExitsSavedPerSecond = PatchListText.Saved(site.Main) is { } rate ? Math.Round(rate, 1) : null,
    };

    private static WindowSection Window(
        PatchSite site, JournalEntry entry, string state, string reason, ulong kernelBase, Func<ulong, string?> symbol)
    {
        PatchPlan plan = entry.Patch.ToPlan(kernelBase);
        ImmutableArray<DisassembledInstruction> implant = PatchDisassembly.Implant(plan, symbol, out string problem);
        return new WindowSection
        {
            Address = site.Address is null ? null : PatchSite.Hexadecimal(plan.Window),
            Offset = PatchSite.OffsetText(entry.Patch.Offset),
            State = state,
            Reason = Text(reason),
            Templates = [.. entry.Patch.Templates.Select(use => new TemplateSection(use.Name, use.Version))],
            Before = Lines(PatchDisassembly.Lines(plan.Window, plan.Original.AsSpan(), symbol)),
            After = Lines(PatchDisassembly.Window(plan, symbol)),
            SpringboardBefore = plan.Springboard is null ? null : Lines(PatchDisassembly.Padding(plan)),
            SpringboardAfter = plan.Springboard is null ? null : Lines(PatchDisassembly.Springboard(plan)),
            Implant = implant.IsEmpty
                ? new ImplantSection(Regenerated: false, Address: null, problem, Code: null)
                : new ImplantSection(
                    Regenerated: true, PatchSite.Hexadecimal(PatchDisassembly.ImplantBase), Reason: null, Lines(implant)),
        };
    }

    private static RefusalSection? Refusal(PatchSite site, ulong kernelBase, Func<ulong, string?> symbol) =>
        site.Main.Refusal is { } refusal
            ? new RefusalSection(
                refusal.Reason,
                ReportBuilder.Name(refusal.Kind),
                Lines(PatchDisassembly.Lines(unchecked(kernelBase + (ulong)site.Offset), refusal.Bytes.AsSpan(), symbol)))
            : null;

    /// <summary>Names addresses in the site's own windows, by the site's name: of other functions the journal knows nothing.</summary>
    private static Func<ulong, string?> Symbols(PatchSite site, ulong kernelBase)
    {
        string[] parts = site.Symbol?.Split("+0x") ?? [];
        if (parts.Length != 2 || !long.TryParse(parts[1], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out long into))
        {
            return _ => null;
        }

        long function = site.Offset - into;
        return address =>
        {
            long offset = unchecked((long)(address - kernelBase));

            // The end included: the way back from the implant leads there.
            return offset >= function && site.Windows.Any(window => window.Entry is { } entry
                && offset >= entry.Patch.Offset && offset <= entry.Patch.End)
                    ? $"{parts[0]}+{PatchSite.Hexadecimal((ulong)(offset - function))}"
                    : null;
        };
    }

    private static HistorySection Event(RecordedEvent recorded, PatchSite site)
    {
        (string name, string? detail) = recorded.Event switch
        {
            JournalEvent.PatchIntended intended => ("intended", Transaction(intended.Transaction)),
            JournalEvent.PatchApplied applied => ("applied", Transaction(applied.Transaction)),
            JournalEvent.PatchAborted aborted => ("aborted", $"{Transaction(aborted.Transaction)}: {aborted.Reason}"),
            JournalEvent.PatchRefused refused => ("refused", refused.Reason),
            JournalEvent.PatchReverted reverted => ("reverted", reverted.Reason),
            JournalEvent.PatchMismatched mismatched => ("mismatched", mismatched.Reason),
            JournalEvent.SiteRetired retired => ("retired", retired.Reason),
            JournalEvent.PatchObserved observed => ("observed", string.Create(
                CultureInfo.InvariantCulture, $"{observed.Exits} exits in {observed.Period.TotalSeconds:0.0##} s before it")),
            JournalEvent.SiteDisabled disabled => ("disabled", Elsewhere(disabled.Offset)),
            JournalEvent.SiteEnabled enabled => ("enabled", Elsewhere(enabled.Offset)),
            _ => (recorded.Event.GetType().Name, null),
        };
        return new HistorySection(recorded.At, name, Text(detail));

        string? Elsewhere(long offset) => offset == site.Offset ? null : $"by {PatchSite.OffsetText(offset)} in its window";
    }

    private static string Transaction(long number) => string.Create(CultureInfo.InvariantCulture, $"transaction {number}");

    private static CodeLine[] Lines(ImmutableArray<DisassembledInstruction> code) =>
        [.. code.Select(line => new CodeLine(PatchSite.Hexadecimal(line.Address), line.Bytes, line.Text))];

    private static string? Base(PatchSite site) =>
        site.Kernel.State.KernelBase == 0 ? null : PatchSite.Hexadecimal(site.Kernel.State.KernelBase);

    private static string? Text(string? text) => string.IsNullOrEmpty(text) ? null : text.ReplaceLineEndings(" ");
}
