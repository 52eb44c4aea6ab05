namespace Dmp.Kvm.Memory;

/// <summary>Tests of bits on the hot path: <see cref="Enum.HasFlag"/> allocates wherever the JIT does not optimize.</summary>
internal static class PagingBits
{
    /// <summary>Whether any of the bits is set.</summary>
    internal static bool Has(this PageEntry entry, PageEntry bits) => (entry & bits) != 0;

    /// <summary>Whether any of the bits is set.</summary>
    internal static bool Has(this PageAccess access, PageAccess bits) => (access & bits) != 0;

    /// <summary>Whether any of the bits is set.</summary>
    internal static bool Has(this PageFaultError error, PageFaultError bits) => (error & bits) != 0;
}
