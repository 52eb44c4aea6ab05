using System.Runtime.InteropServices;

namespace Dmp.Host.Terminal;

/// <summary>
/// A standard stream of this process, read and written as it is. The runtime's own console streams take over the terminal when
/// they are first used: they write control sequences to stdout, edit the line that is typed, and turn Ctrl-c into a signal. And a
/// FileStream keeps a file position of its own, so that stdout and stderr in the same file would overwrite each other.
/// </summary>
internal sealed partial class DescriptorStream(int descriptor) : Stream
{
    /// <summary>Of an IOException: nobody reads any more (EPIPE).</summary>
    public const int BrokenPipe = 32;

    // errno(3) and poll(2).
    private const int Interrupted = 4;
    private const int WouldBlock = 11;
    private const short ReadyToRead = 1;
    private const short ReadyToWrite = 4;
    private const int Forever = -1;

    /// <summary>Standard input.</summary>
    public static DescriptorStream Input { get; } = new(0);

    /// <summary>Standard output.</summary>
    public static DescriptorStream Output { get; } = new(1);

    /// <summary>Standard error.</summary>
    public static DescriptorStream Error { get; } = new(2);

    /// <inheritdoc />
    public override bool CanRead => true;

    /// <inheritdoc />
    public override bool CanSeek => false;

    /// <inheritdoc />
    public override bool CanWrite => true;

    /// <inheritdoc />
    public override long Length => throw new NotSupportedException();

    /// <inheritdoc />
    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    /// <inheritdoc />
    public override int Read(Span<byte> buffer)
    {
        while (true)
        {
            nint read = ReadDescriptor(descriptor, buffer, (nuint)buffer.Length);
            if (read >= 0)
            {
                return (int)read;
            }

            RetryOrThrow("read", ReadyToRead);
        }
    }

    /// <inheritdoc />
    public override void Write(ReadOnlySpan<byte> buffer)
    {
        while (!buffer.IsEmpty)
        {
            nint written = WriteDescriptor(descriptor, buffer, (nuint)buffer.Length);
            if (written >= 0)
            {
                buffer = buffer[(int)written..];
            }
            else
            {
                RetryOrThrow("write", ReadyToWrite);
            }
        }
    }

    /// <inheritdoc />
    public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));

    /// <inheritdoc />
    public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));

    /// <inheritdoc />
    public override void Flush()
    {
    }

    /// <inheritdoc />
    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    /// <inheritdoc />
    public override void SetLength(long value) => throw new NotSupportedException();

    private void RetryOrThrow(string attempted, short readiness)
    {
        int error = Marshal.GetLastPInvokeError();
        if (error == WouldBlock)
        {
            // Whoever shares the terminal with us has made it non-blocking.
            var wait = new PollDescriptor { Descriptor = descriptor, Events = readiness };
            _ = Poll(ref wait, 1, Forever);
        }
        else if (error != Interrupted)
        {
            throw new IOException($"{attempted} on descriptor {descriptor}: {Marshal.GetPInvokeErrorMessage(error)}", error);
        }
    }

    [LibraryImport("libc", EntryPoint = "read", SetLastError = true)]
    private static partial nint ReadDescriptor(int descriptor, Span<byte> buffer, nuint count);

    [LibraryImport("libc", EntryPoint = "write", SetLastError = true)]
    private static partial nint WriteDescriptor(int descriptor, ReadOnlySpan<byte> buffer, nuint count);

    [LibraryImport("libc", EntryPoint = "poll", SetLastError = true)]
    private static partial int Poll(ref PollDescriptor descriptors, nuint count, int timeout);

    /// <summary>struct pollfd of poll(2).</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct PollDescriptor
    {
        public int Descriptor;
        public short Events;
        public short ReturnedEvents;
    }
}
