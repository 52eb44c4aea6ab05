namespace Dmp.Kvm;

/// <summary>What the user gave cannot be used: a file is missing, is not a kernel, memory is too small.</summary>
/// <param name="message">One line that says what is wrong and what to do about it.</param>
public sealed class UnusableInputException(string message) : Exception(message);

/// <summary>This host cannot run a machine: no /dev/kvm, no permission, an API that is too old.</summary>
/// <param name="message">One line that says what is missing and how to get it.</param>
public sealed class HostUnsupportedException(string message) : Exception(message);
