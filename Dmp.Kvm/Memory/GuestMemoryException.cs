using System.Globalization;

namespace Dmp.Kvm.Memory;

/// <summary>An access to guest memory outside RAM. The message names the access and the address.</summary>
public sealed class GuestMemoryException : Exception
{
    internal GuestMemoryException(string attempted, GuestPhysicalAddress address, ulong length, ulong ramSize)
        : base(string.Create(
            CultureInfo.InvariantCulture,
            $"{attempted} of {length} bytes at {address} is outside guest RAM ({ramSize >> 20} MiB)"))
    {
        Address = address;
    }

    /// <summary>Where the access began.</summary>
    public GuestPhysicalAddress Address { get; }
}
