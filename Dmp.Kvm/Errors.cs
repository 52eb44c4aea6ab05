namespace Dmp.Kvm;

/// <summary>The user's input cannot be used. The message is one line: what, why, what to do.</summary>
public class UnusableInputException : Exception
{
    /// <summary>Creates the error.</summary>
    /// <param name="message">One line for the user.</param>
    public UnusableInputException(string message)
        : base(message)
    {
    }

    /// <summary>Creates the error for one that was caught.</summary>
    /// <param name="message">One line for the user.</param>
    /// <param name="innerException">The cause.</param>
    public UnusableInputException(string message, Exception? innerException)
        : base(message, innerException)
    {
    }
}

/// <summary>This host cannot run a machine. The message is one line: what is missing, how to get it.</summary>
public class HostUnsupportedException : Exception
{
    /// <summary>Creates the error.</summary>
    /// <param name="message">One line for the user.</param>
    public HostUnsupportedException(string message)
        : base(message)
    {
    }

    /// <summary>Creates the error for one that was caught.</summary>
    /// <param name="message">One line for the user.</param>
    /// <param name="innerException">The cause.</param>
    public HostUnsupportedException(string message, Exception? innerException)
        : base(message, innerException)
    {
    }
}
