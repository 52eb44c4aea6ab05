namespace Dmp.Kvm.Interop;

/// <summary>
/// Reads the host's time-stamp counter. .NET has no RDTSC intrinsic, so a page of nine bytes of machine code stands in for it.
/// </summary>
internal static unsafe class HostTsc
{
    // rdtsc; shl rdx, 32; or rax, rdx; ret
    private static ReadOnlySpan<byte> Code => [0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xC3];

    private static readonly delegate* unmanaged[SuppressGCTransition]<ulong> Function = Generate();

    /// <summary>The counter now.</summary>
    internal static ulong Read() => Function();

    private static delegate* unmanaged[SuppressGCTransition]<ulong> Generate()
    {
        nuint size = (nuint)Environment.SystemPageSize;
        nint page = Libc.Map(
            0,
            size,
            Libc.ProtectionRead | Libc.ProtectionWrite | Libc.ProtectionExecute,
            Libc.MapPrivate | Libc.MapAnonymous,
            -1,
            0);
        if (page == -1)
        {
            throw KvmException.Last("mapping an executable page", "A policy forbids writable and executable memory.");
        }

        Code.CopyTo(new Span<byte>((void*)page, Code.Length));
        return (delegate* unmanaged[SuppressGCTransition]<ulong>)page;
    }
}
