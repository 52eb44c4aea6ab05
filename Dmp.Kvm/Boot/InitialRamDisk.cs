using Dmp.Kvm.Memory;
using Microsoft.Win32.SafeHandles;

namespace Dmp.Kvm.Boot;

/// <summary>The initial RAM disk's file, read straight into guest RAM.</summary>
internal sealed class InitialRamDisk : IDisposable
{
    /// <summary>One read; several of them for a large file.</summary>
    private const int Piece = 16 << 20;

    private readonly SafeFileHandle _file;

    private InitialRamDisk(string path, SafeFileHandle file, long length)
    {
        Path = path;
        _file = file;
        Length = length;
    }

    /// <summary>The file, as it was given.</summary>
    public string Path { get; }

    /// <summary>Bytes.</summary>
    public long Length { get; }

    /// <summary>Opens the file.</summary>
    /// <exception cref="BootException">There is no such file, it is empty, or it cannot be read.</exception>
    public static InitialRamDisk Open(string path)
    {
        try
        {
            var info = FileTarget.Of(path);
            if (!info.Exists || info.Length == 0)
            {
                string what = !info.Exists ? "no such RAM disk" : "an empty RAM disk, or not a regular file";
                throw new BootException($"{path}: {what}; give an initrd or initramfs file");
            }

            return new InitialRamDisk(path, File.OpenHandle(path, options: FileOptions.SequentialScan), info.Length);
        }
        catch (Exception e) when (IsFileTrouble(e))
        {
            throw Unreadable(path, e);
        }
    }

    /// <summary>Reads all of it.</summary>
    /// <param name="ram">Guest RAM.</param>
    /// <param name="start">Where the first byte goes.</param>
    /// <exception cref="BootException">The file cannot be read, or has changed.</exception>
    public void ReadInto(IGuestRam ram, GuestPhysicalAddress start)
    {
        try
        {
            long position = 0;
            while (position < Length)
            {
                Span<byte> target = ram.Slice(start.Plus((ulong)position), (int)Math.Min(Piece, Length - position));
                int read = RandomAccess.Read(_file, target, position);
                if (read == 0)
                {
                    throw new BootException($"{Path}: the RAM disk became shorter while it was read; try again");
                }

                position += read;
            }
        }
        catch (Exception e) when (IsFileTrouble(e))
        {
            throw Unreadable(Path, e);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();

    private static bool IsFileTrouble(Exception e) =>
        e is IOException or UnauthorizedAccessException or ArgumentException or NotSupportedException;

    private static BootException Unreadable(string path, Exception e) =>
        new($"{path}: the RAM disk cannot be read ({e.Message}); check the path and its permissions", e);
}
