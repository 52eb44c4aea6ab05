namespace Dmp.Actors.Journal;

/// <summary>Something in the journal cannot be read. The message is one line: what, and why.</summary>
public sealed class JournalFormatException : Exception
{
    /// <summary>Creates the error.</summary>
    /// <param name="message">One line.</param>
    /// <param name="innerException">The cause, if there is one.</param>
    public JournalFormatException(string message, Exception? innerException = null)
        : base(message, innerException)
    {
    }
}
