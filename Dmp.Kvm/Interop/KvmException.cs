using System.Globalization;
using System.Runtime.InteropServices;

namespace Dmp.Kvm.Interop;

/// <summary>A system call of ours failed in a way that is nobody's input: names the call, errno and what to look at.</summary>
public sealed class KvmException : Exception
{
    internal KvmException(string attempted, int errno, string advice)
        : base(string.Create(
            CultureInfo.InvariantCulture,
            $"{attempted} failed: {Marshal.GetPInvokeErrorMessage(errno)} (errno {errno}). {advice}"))
    {
        Errno = errno;
    }

    /// <summary>The errno of the failed call.</summary>
    public int Errno { get; }

    /// <summary>Throws for the errno of the last P/Invoke.</summary>
    internal static KvmException Last(string attempted, string advice) =>
        new(attempted, Marshal.GetLastPInvokeError(), advice);
}
