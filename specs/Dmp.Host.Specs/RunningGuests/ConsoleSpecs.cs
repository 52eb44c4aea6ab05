using System.Globalization;
using System.Text.RegularExpressions;

namespace Dmp.Host.Specs.RunningGuests;

/// <summary>The guest's console, as whoever runs dmp sees it.</summary>
[Collection(GuestCollection.Name)]
[Trait("needs", "fast kvm")]
public partial class ConsoleSpecs
{
    private const int Printed = 2000;
    private const int Told = 200;

    /// <summary>The modes that these specs run in.</summary>
    public static TheoryData<string> Modes => ["trap", "dmp"];

    [SkippableTheory(DisplayName = "Lines of a program and of the kernel are all there and in order, and so are the last words of a kernel that panics")]
    [MemberData(nameof(Modes))]
    public async Task Complete(string mode)
    {
        DmpResult result = await DmpProcess.BootAsync(
            mode,
            string.Create(CultureInfo.InvariantCulture, $"dmp.work=print dmp.n={Printed} dmp.end=panic"),
            ["--timeout", "200"]);

        result.ShouldExitWith(4);
        string output = result.Output.ReplaceLineEndings("\n");
        int begin = output.IndexOf("::phase print::", StringComparison.Ordinal);
        int end = output.IndexOf("print ok", begin, StringComparison.Ordinal);
        Assert.True(end > begin, result.ToString());
        string both = output[begin..end];
        Assert.Equal(Numbers(Told), KernelLine().Matches(both).Select(line => Number(line)));

        // The kernel's lines may stand in the middle of others.
        string program = KernelLine().Replace(both, "");
        Assert.Equal(
            "::phase print::\n" + string.Concat(Numbers(Printed).Select(number => FormattableString.Invariant($"printed {number}\n"))),
            program);
        Assert.Contains("Kernel panic - not syncing: sysrq triggered crash", output, StringComparison.Ordinal);
        Assert.EndsWith("---[ end Kernel panic - not syncing: sysrq triggered crash ]---", output.TrimEnd(), StringComparison.Ordinal);
    }

    private static IEnumerable<int> Numbers(int last) => Enumerable.Range(1, last);

    private static int Number(Match line) => int.Parse(line.Groups[1].Value, CultureInfo.InvariantCulture);

    [GeneratedRegex(@"\[ *\d+\.\d+\] told (\d+)\n")]
    private static partial Regex KernelLine();
}
