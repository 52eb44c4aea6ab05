using System.Text;

namespace Dmp.Actors.Console;

/// <summary>Something that stands on the console and means something to us.</summary>
public abstract record ConsoleMark
{
    private ConsoleMark()
    {
    }

    /// <summary>The text of --until.</summary>
    public sealed record UntilSeen : ConsoleMark;

    /// <summary>A line of the form <c>::phase NAME::</c>.</summary>
    /// <param name="Name">The name.</param>
    public sealed record PhaseBegan(string Name) : ConsoleMark;

    /// <summary>The guest kernel has panicked.</summary>
    /// <param name="Line">The line that says so.</param>
    public sealed record KernelPanicked(string Line) : ConsoleMark;
}

/// <summary>
/// Watches console text that arrives in pieces of any size. Pure: the same bytes give the same marks, however they are cut.
/// </summary>
public sealed class ConsoleWatcher
{
    // Longer lines are nobody's phase, and a panic says so at its beginning.
    private const int LineLimit = 1024;
    private const string PhaseBegin = "::phase ";
    private const string PhaseEnd = "::";
    private const string PanicText = "Kernel panic - not syncing";

    // The second line of a panic; seen alone when the first was lost to another CPU's output.
    private const string PanicEndText = "---[ end Kernel panic";

    private readonly TextMatcher? until;
    private readonly byte[] line = new byte[LineLimit];
    private int length;
    private bool untilSeen;

    /// <summary>Creates a watcher.</summary>
    /// <param name="until">Text to report once, or null.</param>
    public ConsoleWatcher(string? until)
    {
        this.until = until is null ? null : new TextMatcher(Encoding.UTF8.GetBytes(until));
    }

    /// <summary>Takes the next bytes.</summary>
    /// <param name="bytes">What the guest wrote.</param>
    /// <param name="marks">Receives what was found, in order.</param>
    public void Feed(ReadOnlySpan<byte> bytes, ICollection<ConsoleMark> marks)
    {
        ArgumentNullException.ThrowIfNull(marks);
        foreach (byte value in bytes)
        {
            if (until is not null && !untilSeen && until.Feed(value))
            {
                untilSeen = true;
                marks.Add(new ConsoleMark.UntilSeen());
            }

            if (value is (byte)'\n' or (byte)'\r')
            {
                EndLine(marks);
            }
            else if (length < LineLimit)
            {
                line[length++] = value;
            }
        }
    }

    /// <summary>The guest will write no more: what stands on an unfinished line counts as it is.</summary>
    /// <param name="marks">Receives what was found.</param>
    public void Finish(ICollection<ConsoleMark> marks)
    {
        ArgumentNullException.ThrowIfNull(marks);
        EndLine(marks);
    }

    private void EndLine(ICollection<ConsoleMark> marks)
    {
        if (length == 0)
        {
            return;
        }

        string text = Encoding.UTF8.GetString(line, 0, length).Trim();
        length = 0;
        if (PhaseName(text) is { } name)
        {
            marks.Add(new ConsoleMark.PhaseBegan(name));
        }
        else if (text.Contains(PanicText, StringComparison.Ordinal) || text.Contains(PanicEndText, StringComparison.Ordinal))
        {
            marks.Add(new ConsoleMark.KernelPanicked(text));
        }
    }

    private static string? PhaseName(string text)
    {
        if (!text.StartsWith(PhaseBegin, StringComparison.Ordinal)
            || !text.EndsWith(PhaseEnd, StringComparison.Ordinal)
            || text.Length < PhaseBegin.Length + PhaseEnd.Length)
        {
            return null;
        }

        string name = text[PhaseBegin.Length..^PhaseEnd.Length].Trim();
        return name.Length > 0 && !name.Contains(PhaseEnd, StringComparison.Ordinal) ? name : null;
    }
}
