using System.Collections.Immutable;
using System.Globalization;
using Dmp.Actors.Journal;

namespace Dmp.Host.Patches;

/// <summary>The list of a journal's sites, for people: fits in 100 columns. Pure.</summary>
internal static class PatchListText
{
    private const string Gap = "  ";
    private const string Missing = "-";
    private const string Cut = "..";
    private const int LongestSymbol = 32;
    private const int LongestTemplate = 16;

    private static readonly (string Title, bool Right)[] Columns =
    [
        ("SITE", false),
        ("SYMBOL", false),
        ("TEMPLATE", false),
        ("STATE", false),
        ("EXITS", true),
        ("SAVED/S", true),
    ];

    /// <summary>Writes the list.</summary>
    /// <param name="sites">All sites, those of a kernel together.</param>
    /// <param name="text">Where to.</param>
    public static void Write(ImmutableArray<PatchSite> sites, TextWriter text)
    {
        // One width for all kernels, so that the eye has one table.
        ImmutableArray<(string KernelId, string[] Cells)> rows = [.. sites.Select(site => (site.KernelId, Row(site)))];
        int[] widths =
        [
            .. Columns.Select((column, index) => Math.Max(column.Title.Length, rows.Max(row => row.Cells[index].Length))),
        ];
        bool first = true;
        foreach (IGrouping<string, (string KernelId, string[] Cells)> kernel in rows.GroupBy(row => row.KernelId))
        {
            text.WriteLine($"{(first ? "" : Environment.NewLine)}kernel {kernel.Key}: {Counted(sites.Where(site => site.KernelId == kernel.Key))}");
            text.WriteLine(Line([.. Columns.Select(column => column.Title)], widths));
            foreach ((_, string[] cells) in kernel)
            {
                text.WriteLine(Line(cells, widths));
            }

            first = false;
        }
    }

    private static string[] Row(PatchSite site) =>
    [
        site.Name,
        CutOff(site.Symbol ?? Missing, LongestSymbol, keepEnd: true),
        CutOff(site.Template ?? Missing, LongestTemplate, keepEnd: false),
        site.State,
        site.Main.Entry is { ExitsPerSecondBefore: not null } seen ? seen.ExitsBefore.ToString(CultureInfo.InvariantCulture) : Missing,
        Saved(site.Main) is { } rate ? rate.ToString("~0", CultureInfo.InvariantCulture) : Missing,
    ];

    /// <summary>Exits that the patch saves each second, as far as that is known: only one in force saves any.</summary>
    public static double? Saved(JournaledSite site) => site.State == SiteState.Applied ? site.Entry?.ExitsPerSecondBefore : null;

    private static string Counted(IEnumerable<PatchSite> sites)
    {
        IEnumerable<string> states = sites.GroupBy(site => site.State)
            .OrderByDescending(group => group.Count()).ThenBy(group => group.Key, StringComparer.Ordinal)
            .Select(group => string.Create(CultureInfo.InvariantCulture, $"{group.Count()} {group.Key}"));
        return string.Join(", ", states);
    }

    private static string Line(string[] cells, int[] widths) => string
        .Join(Gap, cells.Select((cell, index) => Columns[index].Right ? cell.PadLeft(widths[index]) : cell.PadRight(widths[index])))
        .TrimEnd();

    // Of a symbol the offset matters as much as the name.
    private static string CutOff(string text, int longest, bool keepEnd)
    {
        if (text.Length <= longest)
        {
            return text;
        }

        int plus = keepEnd ? text.LastIndexOf('+') : -1;
        string end = plus >= 0 ? text[plus..] : "";
        return text[..Math.Max(0, longest - Cut.Length - end.Length)] + Cut + end;
    }
}
