using System.Globalization;
using Dmp.Host.Reporting;
using Spectre.Console;

namespace Dmp.Host.Demo;

/// <summary>A report for people.</summary>
internal static class DemoReport
{
    private const int Sites = 10;

    /// <summary>Writes it.</summary>
    public static void Write(ReportDocument report, IAnsiConsole console)
    {
        console.Write(new Text($"\n{report.Outcome}: {report.Detail}\n"));
        if (report.Phases is { Count: > 0 } phases)
        {
            Table table = NewTable("Phases", "phase", "wall ms", "exits", "exits/s");
            foreach (PhaseSection phase in phases)
            {
                string rate = phase.WallMs > 0 ? Number(phase.Exits.Total / phase.WallMs * 1000) : "";
                table.AddRow(new Text(phase.Name), new Text(Number(phase.WallMs)), new Text(Number(phase.Exits.Total)), new Text(rate));
            }

            console.Write(table);
        }

        if (report.Exits is { } exits)
        {
            Table table = NewTable("Exits by kind", "kind", "exits", "share");
            foreach ((string kind, long count) in exits.ByKind.Where(kind => kind.Value > 0).OrderByDescending(kind => kind.Value))
            {
                table.AddRow(new Text(kind), new Text(Number(count)), new Text(Share(count, exits.Total)));
            }

            table.AddRow(new Text("total"), new Text(Number(exits.Total)), new Text(""));
            console.Write(table);
        }

        if (report.Sites is { Count: > 0 } sites)
        {
            console.Write(SiteTable(sites));
        }

        if (report.Patches is { } patches && report.QuiesceUs is { } stops)
        {
            string stopped = stops.P50 is { } median
                ? string.Create(CultureInfo.InvariantCulture, $"; the guest stood still {stops.Count} times for that, half of them below {median:N0} us")
                : "";
            console.Write(new Text(string.Create(
                CultureInfo.InvariantCulture,
                $"{patches.Applied} patches applied, {patches.Replayed} replayed from earlier runs{stopped}\n")));
        }

        if (report.Time is { } time)
        {
            console.Write(new Text(string.Create(
                CultureInfo.InvariantCulture,
                $"{Share(time.InsideKvmRunMs, time.InsideKvmRunMs + time.OutsideKvmRunMs)} of the vCPU's time is inside KVM_RUN\n")));
        }
    }

    private static Table SiteTable(IReadOnlyList<SiteSection> sites)
    {
        // A machine that does not disassemble leaves out that column.
        bool disassembled = sites.Any(site => site.Instruction is not null);
        Table table = NewTable(
            "Hottest sites", disassembled ? ["where", "instruction", "kind", "exits", "state"] : ["where", "kind", "exits", "state"]);
        foreach (SiteSection site in sites.Take(Sites))
        {
            string where = site.Symbol ?? site.Rip;
            string[] cells = disassembled
                ? [where, site.Instruction ?? "", site.Kind, Number(site.Exits), site.State ?? ""]
                : [where, site.Kind, Number(site.Exits), site.State ?? ""];
            table.AddRow(cells.Select(cell => new Text(cell)));
        }

        return table;
    }

    private static Table NewTable(string title, params string[] columns)
    {
        var table = new Table().SimpleBorder().Title(title);
        foreach (string column in columns)
        {
            table.AddColumn(new TableColumn(column).RightAligned());
        }

        table.Columns[0].Alignment = Justify.Left;
        return table;
    }

    private static string Number(double value) => value.ToString("N0", CultureInfo.InvariantCulture);

    private static string Share(double part, double whole) => (whole > 0 ? part / whole : 0).ToString("P1", CultureInfo.InvariantCulture);
}
