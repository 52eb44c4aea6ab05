using System.Text.RegularExpressions;

namespace Dmp.Host.Specs.RunningGuests;

/// <summary>Patches make a guest faster and nothing else, whichever of them there are.</summary>
[Collection(GuestCollection.Name)]
[Trait("needs", "fast kvm")]
public partial class TemplateChoiceSpecs
{
    /// <summary>What <c>signals</c> leaves out: see <see cref="GuestSpecs"/>.</summary>
    private const string KnownFailures = "ldt,rdtsc-forbidden,cpu-number";

    [SkippableFact(DisplayName = "With all templates, with none and with each one alone, a guest's programs say the same")]
    public async Task SaysTheSame()
    {
        string[] templates = await TemplatesAsync();
        Assert.True(templates.Length > 10, string.Join(", ", templates));
        string[] expected = await OutputAsync([]);
        Assert.Contains("signals ok", expected);
        Assert.Contains("files ok", expected);

        Assert.Equal(expected, await OutputAsync(templates));
        foreach (string alone in templates)
        {
            string[] said = await OutputAsync(templates.Where(name => name != alone));
            Assert.True(expected.SequenceEqual(said), $"with {alone} alone:\n{string.Join('\n', said.Except(expected))}");
        }
    }

    /// <summary>The names of all templates, as the refusal of another name tells them.</summary>
    private static async Task<string[]> TemplatesAsync()
    {
        const string Before = "there are ";
        DmpResult result = await DmpProcess.BootAsync("dmp", "", ["--without-template", "none-of-them"]);
        result.ShouldExitWith(2);
        string list = result.Error[(result.Error.IndexOf(Before, StringComparison.Ordinal) + Before.Length)..];
        return list[..list.IndexOf('.', StringComparison.Ordinal)].Split(", ");
    }

    private static async Task<string[]> OutputAsync(IEnumerable<string> without)
    {
        DmpResult result = await DmpProcess.BootAsync(
            "dmp",
            $"quiet dmp.work=signals,files dmp.skip={KnownFailures}",
            ["--timeout", "240", .. without.SelectMany(name => new[] { "--without-template", name })]);

        result.ShouldExitWith(0);
        string[] lines = result.Output.ReplaceLineEndings("\n").Split('\n');
        int first = Array.IndexOf(lines, "BOOTED");
        int end = Array.IndexOf(lines, "::phase end::");
        Assert.InRange(first, 0, end);
        return [.. lines[first..end].Select(line => Duration().Replace(line, "took"))];
    }

    [GeneratedRegex("took [0-9.]+ seconds")]
    private static partial Regex Duration();
}
