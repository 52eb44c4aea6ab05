using System.Text;
using Dmp.Actors.Console;
using FsCheck;
using FsCheck.Fluent;
using FsCheck.Xunit;

namespace Dmp.Actors.Specs.Console;

public class ConsoleWatcherSpecs
{
    [Theory(DisplayName = "A line of the form ::phase NAME:: begins a phase")]
    [InlineData("::phase fork::\n", "fork")]
    [InlineData("boot text\r\n::phase page faults::\r\n", "page faults")]
    [InlineData("  ::phase x::  \n", "x")]
    [InlineData("::phase a::\n::phase b::\n", "a b")]
    [InlineData("::phase ::\n", "")]
    [InlineData("::phase a::b::\n", "")]
    [InlineData("say ::phase a::\n", "")]
    [InlineData("::phase a:: said\n", "")]
    [InlineData("::phase a:\n", "")]
    public void Phase_lines(string text, string names) => Assert.Equal(
        names, string.Join(' ', Marks(text, until: null).OfType<ConsoleMark.PhaseBegan>().Select(mark => mark.Name)));

    [Fact(DisplayName = "A panic is reported with its line, also when the line never ends")]
    public void Panics()
    {
        const string Text = "[    1.2] Kernel panic - not syncing: no init found";
        Assert.Equal([new ConsoleMark.KernelPanicked(Text)], Marks(Text, until: null));
        Assert.Single(Marks("---[ end Kernel panic ]---\n", until: null));
    }

    [Fact(DisplayName = "--until is found in the middle of a line, once")]
    public void Until_is_found_once() =>
        Assert.Single(Marks("login: login: ", until: "login:").OfType<ConsoleMark.UntilSeen>());

    [Property(DisplayName = "However the output is cut into pieces, the marks are the same")]
    public Property Cuts_do_not_matter()
    {
        Gen<string> words = Gen.Elements(
            "::phase a::", "::phase b::", "\r\n", "\n", "ab", "aab", "Kernel panic - not syncing: x", "::", "ä", " ");
        Gen<string> texts = words.ArrayOf().Select(string.Concat);
        Gen<int[]> cuts = Gen.Choose(1, 7).NonEmptyListOf().Select(list => list.ToArray());
        return Prop.ForAll(texts.ToArbitrary(), cuts.ToArbitrary(), (text, sizes) =>
        {
            byte[] bytes = Encoding.UTF8.GetBytes(text);
            var watcher = new ConsoleWatcher("aaab");
            var marks = new List<ConsoleMark>();
            for (int start = 0, turn = 0; start < bytes.Length; turn++)
            {
                int size = Math.Min(sizes[turn % sizes.Length], bytes.Length - start);
                watcher.Feed(bytes.AsSpan(start, size), marks);
                start += size;
            }

            watcher.Finish(marks);
            return marks.SequenceEqual(Marks(text, "aaab"));
        });
    }

    [Property(DisplayName = "The matcher finds what a search in the whole text finds")]
    public Property Matcher_agrees_with_search()
    {
        Gen<string> letters = Gen.Elements('a', 'b').ArrayOf().Select(chars => new string(chars));
        return Prop.ForAll(letters.ToArbitrary(), letters.Where(text => text.Length > 0).ToArbitrary(), (text, wanted) =>
        {
            var matcher = new TextMatcher(Encoding.UTF8.GetBytes(wanted));
            IEnumerable<int> found = Enumerable.Range(0, text.Length).Where(index => matcher.Feed((byte)text[index])).ToArray();
            IEnumerable<int> expected = Enumerable.Range(0, text.Length)
                .Where(index => text[..(index + 1)].EndsWith(wanted, StringComparison.Ordinal));
            return found.SequenceEqual(expected);
        });
    }

    private static List<ConsoleMark> Marks(string text, string? until)
    {
        var watcher = new ConsoleWatcher(until);
        var marks = new List<ConsoleMark>();
        watcher.Feed(Encoding.UTF8.GetBytes(text), marks);
        watcher.Finish(marks);
        return marks;
    }
}
