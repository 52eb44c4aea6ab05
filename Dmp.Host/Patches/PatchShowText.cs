using System.Globalization;

namespace Dmp.Host.Patches;

/// <summary>All about a site, for people. Pure.</summary>
internal static class PatchShowText
{
    private const int LabelWidth = 10;
    private const int BytesWidth = 32;

    /// <summary>Writes it.</summary>
    /// <param name="shown">The site.</param>
    /// <param name="text">Where to.</param>
    public static void Write(PatchDocument shown, TextWriter text)
    {
        PatchSummarySection site = shown.Site;
        text.WriteLine($"{site.Address ?? site.Offset}{(site.Symbol is null ? "" : $"  {site.Symbol}")}");
        Field("state", site.Reason is null ? site.State : $"{site.State}: {site.Reason}");
        Field("template", site.Template ?? "none");
        Field("exits", Exits(site));
        Field("kernel", shown.KernelId);
        Field("offset", shown.KernelBase is { } kernelBase
            ? $"{site.Offset} from {kernelBase}, where the kernel lay"
            : $"{site.Offset}; the journal does not say where the kernel lay: addresses below are the usual ones");
        foreach (WindowSection window in shown.Windows)
        {
            Window(window);
        }

        if (shown.Refusal is { } refusal)
        {
            Heading($"refused: {refusal.Reason} ({refusal.Kind} exits)");
            Code(refusal.Instruction);
        }

        Heading("history (UTC)");
        foreach (HistorySection happened in shown.History)
        {
            string at = happened.At.ToString("yyyy-MM-dd HH:mm:ss", CultureInfo.InvariantCulture);
            text.WriteLine($"  {at}  {happened.Event.PadRight(LabelWidth)}  {happened.Detail}".TrimEnd());
        }

        void Window(WindowSection window)
        {
            string templates = string.Join(" + ", window.Templates.Select(use =>
                string.Create(CultureInfo.InvariantCulture, $"{use.Name} (version {use.Version})")));
            Heading($"window {window.Address ?? window.Offset}: {window.State}{(window.Reason is null ? "" : $": {window.Reason}")}");
            text.WriteLine($"  made by {(templates.Length == 0 ? "no template" : templates)}");
            text.WriteLine("  before");
            Code(window.Before);
            text.WriteLine("  after (?? is where the implant lies, which differs from run to run)");
            Code(window.After);
            if (window is { SpringboardBefore: { } before, SpringboardAfter: { } after })
            {
                text.WriteLine("  springboard before");
                Code(before);
                text.WriteLine("  springboard after");
                Code(after);
            }

            if (window.Implant.Code is not { } code)
            {
                text.WriteLine($"  implant: the journal does not hold it, and it cannot be made again: {window.Implant.Reason}");
                return;
            }

            text.WriteLine($"  implant (made again from the window and its templates, as if it lay at {window.Implant.Address})");
            Code(code);
        }

        void Heading(string heading) => text.WriteLine($"{Environment.NewLine}{heading}");

        void Field(string label, string value) => text.WriteLine($"  {label.PadRight(LabelWidth)}{value}");

        void Code(IReadOnlyList<CodeLine> lines)
        {
            foreach (CodeLine line in lines)
            {
                text.WriteLine($"    {line.Address}  {line.Bytes.PadRight(BytesWidth)}  {line.Text}");
            }
        }
    }

    private static string Exits(PatchSummarySection site)
    {
        if (site is not { ExitsBefore: { } exits, ExitsBeforeMs: { } period })
        {
            return "not counted";
        }

        string counted = string.Create(CultureInfo.InvariantCulture, $"{exits} in {period / 1000:0.0##} s before the patch");
        return site.ExitsSavedPerSecond is { } saved
            ? string.Create(CultureInfo.InvariantCulture, $"{counted}; at that rate it saves ~{saved:0} each second")
            : counted;
    }
}
