namespace Dmp.Actors.Console;

/// <summary>
/// Finds a byte string in a stream that arrives in pieces of any size (Knuth, Morris, Pratt: no byte is looked at twice and
/// nothing is buffered).
/// </summary>
public sealed class TextMatcher
{
    private readonly byte[] text;
    private readonly int[] fallback;
    private int matched;

    /// <summary>Creates a matcher.</summary>
    /// <param name="text">What to find; at least one byte.</param>
    public TextMatcher(ReadOnlySpan<byte> text)
    {
        ArgumentOutOfRangeException.ThrowIfZero(text.Length, nameof(text));
        this.text = text.ToArray();
        fallback = new int[text.Length];
        for (int position = 1, length = 0; position < text.Length; position++)
        {
            while (length > 0 && text[position] != text[length])
            {
                length = fallback[length - 1];
            }

            if (text[position] == text[length])
            {
                length++;
            }

            fallback[position] = length;
        }
    }

    /// <summary>Takes the next byte.</summary>
    /// <param name="value">The byte.</param>
    /// <returns>Whether the text ends with it.</returns>
    public bool Feed(byte value)
    {
        while (matched > 0 && text[matched] != value)
        {
            matched = fallback[matched - 1];
        }

        if (text[matched] == value)
        {
            matched++;
        }

        if (matched < text.Length)
        {
            return false;
        }

        matched = fallback[matched - 1];
        return true;
    }
}
