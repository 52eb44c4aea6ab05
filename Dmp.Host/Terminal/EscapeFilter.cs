namespace Dmp.Host.Terminal;

/// <summary>
/// Takes our own commands out of what is typed: Ctrl-a x ends the run, Ctrl-a a sends a Ctrl-a. Ctrl-a with anything else goes to
/// the guest as it was typed. Pure; a command may be cut anywhere between two reads.
/// </summary>
internal sealed class EscapeFilter
{
    private const byte Escape = 0x01;
    private bool escaped;

    /// <summary>Takes typed bytes.</summary>
    /// <param name="typed">What was typed.</param>
    /// <param name="forGuest">Receives what goes to the guest.</param>
    /// <returns>Whether the run is to end; what was typed after that is dropped.</returns>
    public bool Feed(ReadOnlySpan<byte> typed, ICollection<byte> forGuest)
    {
        foreach (byte key in typed)
        {
            if (!escaped)
            {
                escaped = key == Escape;
                if (!escaped)
                {
                    forGuest.Add(key);
                }

                continue;
            }

            escaped = false;
            switch (key)
            {
                case (byte)'x':
                    return true;
                case (byte)'a':
                    forGuest.Add(Escape);
                    break;
                default:
                    forGuest.Add(Escape);
                    forGuest.Add(key);
                    break;
            }
        }

        return false;
    }
}
