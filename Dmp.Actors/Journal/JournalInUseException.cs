namespace Dmp.Actors.Journal;

/// <summary>Another process uses the journal. The message is half a line: who.</summary>
public sealed class JournalInUseException : Exception
{
    /// <summary>Creates the error.</summary>
    /// <param name="message">Who uses it.</param>
    public JournalInUseException(string message)
        : base(message)
    {
    }
}
