using System.Text.Json;
using Dmp.Kvm;

namespace Dmp.Host.Reporting;

/// <summary>Writes reports so that a reader sees a whole one or none.</summary>
internal static class ReportFile
{
    /// <summary>Fails now if the report could not be written later.</summary>
    /// <param name="path">Where it is to go, or null for nowhere.</param>
    public static void Check(string? path)
    {
        if (path is null)
        {
            return;
        }

        string directory = Path.GetDirectoryName(Path.GetFullPath(path)) ?? "/";
        if (!Directory.Exists(directory))
        {
            throw new UnusableInputException($"--report {path}: there is no directory {directory}; create it first");
        }

        if (Directory.Exists(path))
        {
            throw new UnusableInputException($"--report {path} is a directory; give the path of a file");
        }
    }

    /// <summary>Writes a report.</summary>
    /// <param name="path">Where to, or null for nowhere.</param>
    /// <param name="report">The report.</param>
    public static void Write(string? path, ReportDocument report)
    {
        if (path is null)
        {
            return;
        }

        // In the same directory, so that the move is a rename.
        string unfinished = $"{path}.{Environment.ProcessId}.tmp";
        try
        {
            File.WriteAllText(unfinished, JsonSerializer.Serialize(report, ReportJson.Plain.ReportDocument) + "\n");
            File.Move(unfinished, path, overwrite: true);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new UnusableInputException($"--report {path} cannot be written: {e.Message}");
        }
    }
}
