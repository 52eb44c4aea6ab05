namespace Dmp.Actors.Writing;

/// <summary>Half a batch of patches is in the guest's code, and cannot be taken back: the guest must not run again.</summary>
/// <param name="message">What failed, in one line.</param>
/// <param name="innerException">What was thrown when the batch was taken back.</param>
public sealed class GuestCodeDamagedException(string message, Exception innerException) : Exception(message, innerException);
