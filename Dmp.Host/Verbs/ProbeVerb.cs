using System.CommandLine;
using System.Text.Json;
using Dmp.Host.Reporting;
using Dmp.Kvm.Probe;
using Spectre.Console;

namespace Dmp.Host.Verbs;

/// <summary><c>dmp probe</c>: what this host's KVM can do, measured, and which strategies follow.</summary>
internal static class ProbeVerb
{
    /// <summary>Creates the verb.</summary>
    public static Command Create(HostEnvironment host)
    {
        var json = new Option<bool>("--json") { Description = "Print JSON" };
        var command = new Command("probe", "Show what this host's KVM can do, measured, and what follows from it") { json };
        command.SetAction(parsed =>
        {
            ProbeReport report = host.Probe();
            if (parsed.GetValue(json))
            {
                host.Text.WriteLine(JsonSerializer.Serialize(report, ReportJson.Plain.ProbeReport));
            }
            else if (host.TextIsTerminal)
            {
                WriteTable(report, host.TextConsole());
            }
            else
            {
                WriteLines(report, host.Text);
            }

            return ExitCodes.Success;
        });
        return command;
    }

    private static void WriteTable(ProbeReport report, IAnsiConsole console)
    {
        var table = new Table().RoundedBorder().AddColumns("Finding", "Value", "Consequence");
        foreach (ProbeFinding finding in report.Findings)
        {
            table.AddRow(new Text(finding.Name), new Text(finding.Value, new Style(decoration: Decoration.Bold)), new Text(finding.Consequence));
        }

        console.Write(table);
        foreach (string strategy in report.Strategies)
        {
            console.Write(new Text($"-> {strategy}\n"));
        }
    }

    private static void WriteLines(ProbeReport report, TextWriter text)
    {
        foreach (ProbeFinding finding in report.Findings)
        {
            text.WriteLine($"{finding.Name}: {finding.Value} ({finding.Consequence})");
        }

        foreach (string strategy in report.Strategies)
        {
            text.WriteLine($"strategy: {strategy}");
        }
    }
}
