using System.Runtime.InteropServices;

namespace Dmp.Kvm.Boot;

/// <summary>
/// A large buffer outside the managed heap. Images are tens of megabytes and needed for a moment: here they go back to the
/// system at once, on the large-object heap they would stay.
/// </summary>
internal sealed unsafe class HostBuffer : IDisposable
{
    private byte* _memory;

    /// <summary>Allocates; the content is undefined.</summary>
    /// <param name="length">Bytes.</param>
    /// <exception cref="OutOfMemoryException">The host has not that much.</exception>
    public HostBuffer(int length)
    {
        _memory = (byte*)NativeMemory.Alloc((nuint)Math.Max(length, 1));
        Length = length;
    }

    ~HostBuffer() => Free();

    /// <summary>Bytes.</summary>
    public int Length { get; }

    /// <summary>The buffer. Not to be used after <see cref="Dispose"/>.</summary>
    public Span<byte> Span
    {
        get
        {
            ObjectDisposedException.ThrowIf(_memory is null, this);
            return new Span<byte>(_memory, Length);
        }
    }

    /// <summary>A stream that reads a piece of the buffer; it must not outlive it.</summary>
    public UnmanagedMemoryStream Read(int start, int length)
    {
        _ = Span.Slice(start, length);
        return new UnmanagedMemoryStream(_memory + start, length);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Free();
        GC.SuppressFinalize(this);
    }

    private void Free()
    {
        NativeMemory.Free(_memory);
        _memory = null;
    }
}
