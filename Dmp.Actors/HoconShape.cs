using System.Globalization;
using Dmp.Kvm;

namespace Dmp.Actors;

/// <summary>
/// Checks that brackets and quotes of a HOCON text match, and says on which line they do not. Akka's parser cannot be asked: on
/// some unbalanced texts it returns a wrong tree, and on others it never returns.
/// </summary>
internal static class HoconShape
{
    private const string MultiLineQuote = "\"\"\"";

    public static void Check(string text)
    {
        var open = new Stack<(char Bracket, int Line)>();
        int line = 1;
        for (int position = 0; position < text.Length; position++)
        {
            switch (text[position])
            {
                case '\n':
                    line++;
                    break;
                case '#':
                case '/' when text.AsSpan(position).StartsWith("//"):
                    position = EndOfLine(text, position) - 1;
                    break;
                case '"':
                    int end = EndOfString(text, position, line);
                    line += text.AsSpan(position, end - position).Count('\n');
                    position = end - 1;
                    break;
                case '{' or '[':
                    open.Push((text[position], line));
                    break;
                case '}' or ']':
                    char opening = text[position] == '}' ? '{' : '[';
                    if (!open.TryPop(out (char Bracket, int Line) last) || last.Bracket != opening)
                    {
                        throw Malformed(line, $"'{text[position]}' closes nothing");
                    }

                    break;
            }
        }

        if (open.TryPop(out (char Bracket, int Line) left))
        {
            throw Malformed(left.Line, $"'{left.Bracket}' is never closed");
        }
    }

    private static int EndOfLine(string text, int from)
    {
        int end = text.IndexOf('\n', from);
        return end < 0 ? text.Length : end;
    }

    private static int EndOfString(string text, int from, int line)
    {
        if (text.AsSpan(from).StartsWith(MultiLineQuote))
        {
            int end = text.IndexOf(MultiLineQuote, from + MultiLineQuote.Length, StringComparison.Ordinal);
            return end < 0 ? throw Malformed(line, "the quotes are never closed") : end + MultiLineQuote.Length;
        }

        for (int position = from + 1; position < EndOfLine(text, from); position++)
        {
            if (text[position] == '\\')
            {
                position++;
            }
            else if (text[position] == '"')
            {
                return position + 1;
            }
        }

        throw Malformed(line, "the quotes are never closed");
    }

    private static UnusableInputException Malformed(int line, string what) =>
        new(string.Create(CultureInfo.InvariantCulture, $"line {line} is not valid HOCON: {what}"));
}
