using System.Text;
using Dmp.Host.Demo;
using Dmp.Host.Terminal;
using Dmp.Host.Verbs;
using FsCheck;
using FsCheck.Fluent;
using FsCheck.Xunit;

namespace Dmp.Host.Specs;

public class MemorySizeSpecs
{
    [Theory(DisplayName = "Sizes as people write them")]
    [InlineData("512M", 512UL << 20)]
    [InlineData("1g", 1UL << 30)]
    [InlineData("64MiB", 64UL << 20)]
    [InlineData("2GB", 2UL << 30)]
    [InlineData("2048k", 2UL << 20)]
    [InlineData("4096", 4096UL)]
    public void Sizes(string text, ulong bytes)
    {
        Assert.True(MemorySize.TryParse(text, out ulong parsed));
        Assert.Equal(bytes, parsed);
    }

    [Theory(DisplayName = "What is no size is refused")]
    [InlineData("")]
    [InlineData("M")]
    [InlineData("-1M")]
    [InlineData("1.5G")]
    [InlineData("1 G")]
    [InlineData("12X")]
    [InlineData("99999999999999G")]
    public void Refused(string text) => Assert.False(MemorySize.TryParse(text, out _));

    [Property(DisplayName = "A size that is written can be read back")]
    public bool Round_trip(ulong bytes) => MemorySize.TryParse(MemorySize.Format(bytes), out ulong parsed) && parsed == bytes;

    [Property(DisplayName = "No text makes the parser fail")]
    public void Any_text(NonNull<string> text) => _ = MemorySize.TryParse(text.Get, out _);
}

public class EscapeFilterSpecs
{
    [Theory(DisplayName = "Ctrl-a x ends, Ctrl-a a is a Ctrl-a, everything else goes to the guest")]
    [InlineData("ls\r", "ls\r", false)]
    [InlineData("a\u0001x", "a", true)]
    [InlineData("a\u0001xb", "a", true)]
    [InlineData("\u0001a", "\u0001", false)]
    [InlineData("\u0001ax", "\u0001x", false)]
    [InlineData("\u0001q", "\u0001q", false)]
    [InlineData("\u0001\u0001x", "\u0001\u0001x", false)]
    [InlineData("\u0003", "\u0003", false)]
    [InlineData("\u0001", "", false)]
    public void Keys(string typed, string forGuest, bool ends)
    {
        var received = new List<byte>();
        Assert.Equal(ends, new EscapeFilter().Feed(Encoding.UTF8.GetBytes(typed), received));
        Assert.Equal(forGuest, Encoding.UTF8.GetString([.. received]));
    }

    [Property(DisplayName = "However the keys are cut into reads, the guest gets the same")]
    public Property Cuts_do_not_matter() => Prop.ForAll(
        Gen.Elements((byte)1, (byte)'a', (byte)'x', (byte)'q').ArrayOf().ToArbitrary(),
        keys =>
        {
            var whole = new List<byte>();
            var single = new List<byte>();
            var filter = new EscapeFilter();
            bool ended = new EscapeFilter().Feed(keys, whole);
            return keys.Any(key => filter.Feed([key], single)) == ended && whole.SequenceEqual(single);
        });
}

public class LineSplitterSpecs
{
    [Fact(DisplayName = "Colours and cursor movements do not reach our display")]
    public void Escape_sequences_are_dropped() =>
        Assert.Equal(["ok done", "next"], Lines("\x1b[1;32mok\x1b[0m\tdone\r\n\r\n\x1b[2J\x1b\u0037next"u8));

    [Property(DisplayName = "However the output is cut, the lines are the same, and free of control characters")]
    public Property Cuts_do_not_matter() => Prop.ForAll(
        Gen.Elements("a", "ä", "€", "\n", "\r", "\x1b[1m", "\x1b", "[", "m", "\u0007").ArrayOf().Select(string.Concat).ToArbitrary(),
        text =>
        {
            byte[] bytes = Encoding.UTF8.GetBytes(text);
            var splitter = new LineSplitter();
            var lines = new List<string>();
            foreach (byte value in bytes)
            {
                splitter.Feed([value], lines);
            }

            splitter.Finish(lines);
            return lines.SequenceEqual(Lines(bytes)) && !lines.Any(line => line.Any(char.IsControl));
        });

    private static List<string> Lines(ReadOnlySpan<byte> bytes)
    {
        var splitter = new LineSplitter();
        var lines = new List<string>();
        splitter.Feed(bytes, lines);
        splitter.Finish(lines);
        return lines;
    }
}
