namespace Dmp.Kvm.Boot;

/// <summary>A guest cannot be started from what was given. The message is one line: what is wrong, and what to do.</summary>
public class BootException : UnusableInputException
{
    /// <summary>Says why.</summary>
    /// <param name="message">One line: what is wrong, and what to do.</param>
    public BootException(string message)
        : base(message)
    {
    }

    /// <summary>Says why, and keeps what led to it.</summary>
    /// <param name="message">One line: what is wrong, and what to do.</param>
    /// <param name="innerException">What failed underneath.</param>
    public BootException(string message, Exception? innerException)
        : base(message, innerException)
    {
    }
}
