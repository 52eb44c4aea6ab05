using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using Microsoft.Win32.SafeHandles;

namespace Dmp.Actors.Journal;

/// <summary>
/// An advisory lock that lives as long as its process at most: the kernel gives it back however the process ends. The file
/// stays, for deleting it would let two processes lock two files of one name.
/// </summary>
internal sealed partial class LockFile : IDisposable
{
    private const int OpenReadOnly = 0;
    private const int OpenCloseOnExec = 0x80000;
    private const int WouldBlock = 11; // EWOULDBLOCK: what .NET makes of a lock that is taken
    private const int LongestContent = 32;

    private const string Unknown = "(unknown)";

    private readonly FileStream stream;

    private LockFile(FileStream stream) => this.stream = stream;

    /// <summary>Takes the lock.</summary>
    /// <param name="path">The lock file; created when it is not there.</param>
    /// <exception cref="JournalInUseException">Another process, or another part of this one, has it.</exception>
    /// <exception cref="IOException">The file cannot be created or written.</exception>
    /// <exception cref="UnauthorizedAccessException">So.</exception>
    public static LockFile Take(string path)
    {
        FileStream stream;
        try
        {
            stream = new FileStream(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);
        }
        catch (IOException failure) when (failure.HResult == WouldBlock)
        {
            throw new JournalInUseException($"it is in use by process {Holder(path)}");
        }

        try
        {
            // For whoever finds the lock taken.
            stream.SetLength(0);
            stream.Write(Encoding.ASCII.GetBytes(Environment.ProcessId.ToString(CultureInfo.InvariantCulture)));
            stream.Flush();
        }
        catch (IOException)
        {
            // On a full disk the lock is as good; only its holder has no name.
        }

        return new LockFile(stream);
    }

    /// <inheritdoc/>
    public void Dispose() => stream.Dispose();

    private static string Holder(string path)
    {
        // Not through File: every way to open a file there takes a lock itself, and so fails here.
        int descriptor = Open(path, OpenReadOnly | OpenCloseOnExec);
        if (descriptor < 0)
        {
            return Unknown;
        }

        using var handle = new SafeFileHandle(descriptor, ownsHandle: true);
        Span<byte> content = stackalloc byte[LongestContent];
        string text = Encoding.ASCII.GetString(content[..RandomAccess.Read(handle, content, fileOffset: 0)]).Trim();
        return text.Length > 0 ? text : Unknown;
    }

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8, EntryPoint = "open")]
    private static partial int Open(string path, int flags);
}
