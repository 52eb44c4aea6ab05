using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Dmp.Kvm.Interop;

/// <summary>
/// A range of memory backed by a memfd: committed lazily, shareable, outside the managed heap. Every access is checked against
/// the range. Threads: the memory is shared with guest code; plain accesses are as ordered as x86-64 makes them.
/// </summary>
internal sealed unsafe class MappedMemory : IDisposable
{
    private readonly int descriptor;
    private byte* start;

    private MappedMemory(int descriptor, byte* start, ulong size)
    {
        this.descriptor = descriptor;
        this.start = start;
        Size = size;
    }

    /// <summary>Bytes in the range.</summary>
    internal ulong Size { get; }

    /// <summary>Host virtual address of the first byte, for KVM's memory slots.</summary>
    internal ulong HostAddress => (ulong)start;

    /// <summary>Creates and maps a new memory file.</summary>
    internal static MappedMemory Create(string name, ulong size)
    {
        int descriptor = Libc.CreateMemoryFile(name, Libc.MemfdCloseOnExec);
        if (descriptor < 0)
        {
            throw KvmException.Last($"memfd_create({name})", "Check the limits on open files and locked memory.");
        }

        nint address = -1;
        if (Libc.Truncate(descriptor, (long)size) == 0)
        {
            address = Libc.Map(
                0,
                (nuint)size,
                Libc.ProtectionRead | Libc.ProtectionWrite,
                Libc.MapShared | Libc.MapNoReserve,
                descriptor,
                0);
        }

        if (address == -1)
        {
            KvmException error = KvmException.Last(
                $"mapping {size >> 20} MiB for {name}",
                "Give the guest less memory, or raise the address-space limit (ulimit -v).");
            _ = Libc.Close(descriptor);
            throw error;
        }

        return new MappedMemory(descriptor, (byte*)address, size);
    }

    /// <summary>The bytes of a part of the range.</summary>
    internal Span<byte> Slice(ulong offset, int length)
    {
        Check(offset, (ulong)length);
        return new Span<byte>(start + offset, length);
    }

    /// <summary>One 8-byte word, for plain and interlocked access.</summary>
    /// <param name="offset">Offset in bytes, a multiple of 8.</param>
    internal ref ulong Word(ulong offset)
    {
        Check(offset, sizeof(ulong));
        return ref Unsafe.AsRef<ulong>(start + offset);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (start != null)
        {
            _ = Libc.Unmap((nint)start, (nuint)Size);
            _ = Libc.Close(descriptor);
            start = null;
        }
    }

    private void Check(ulong offset, ulong length)
    {
        if (length > Size || offset > Size - length || start == null)
        {
            ThrowOutside(offset, length);
        }
    }

    private void ThrowOutside(ulong offset, ulong length) => throw new ArgumentOutOfRangeException(
        nameof(offset), $"{length} bytes at offset 0x{offset:x} are outside a mapping of 0x{Size:x} bytes");
}
