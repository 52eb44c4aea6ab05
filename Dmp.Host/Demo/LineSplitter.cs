using System.Text;

namespace Dmp.Host.Demo;

/// <summary>
/// Cuts console output into lines that are safe to show inside of a display of ours: no control characters, no escape sequences.
/// Pure; lines, characters and sequences may be cut anywhere between two pieces.
/// </summary>
internal sealed class LineSplitter
{
    private const char EscapeCharacter = '\x1b';
    private readonly Decoder decoder = Encoding.UTF8.GetDecoder();
    private readonly StringBuilder line = new();
    private Sequence sequence;

    private enum Sequence
    {
        None,
        Escape,
        Control,
    }

    /// <summary>Takes output.</summary>
    /// <param name="bytes">What the guest wrote.</param>
    /// <param name="lines">Receives the lines that are complete and not empty.</param>
    public void Feed(ReadOnlySpan<byte> bytes, ICollection<string> lines)
    {
        Span<char> characters = new char[decoder.GetCharCount(bytes, flush: false)];
        int count = decoder.GetChars(bytes, characters, flush: false);
        foreach (char character in characters[..count])
        {
            Take(character, lines);
        }
    }

    /// <summary>Takes what stands on an unfinished line.</summary>
    public void Finish(ICollection<string> lines) => EndLine(lines);

    private void Take(char character, ICollection<string> lines)
    {
        switch (sequence)
        {
            case Sequence.Escape:
                sequence = character == '[' ? Sequence.Control : Sequence.None;
                break;
            case Sequence.Control:
                // ECMA-48: a control sequence ends with a byte from 0x40 to 0x7e.
                sequence = character is >= '@' and <= '~' ? Sequence.None : Sequence.Control;
                break;
            case Sequence.None when character == EscapeCharacter:
                sequence = Sequence.Escape;
                break;
            case Sequence.None when character is '\n' or '\r':
                EndLine(lines);
                break;
            case Sequence.None when character == '\t':
                line.Append(' ');
                break;
            case Sequence.None when !char.IsControl(character):
                line.Append(character);
                break;
        }
    }

    private void EndLine(ICollection<string> lines)
    {
        if (line.Length > 0)
        {
            lines.Add(line.ToString());
            line.Clear();
        }
    }
}
