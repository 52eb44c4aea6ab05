using System.Security.Cryptography;

namespace Dmp.Kvm.Boot;

/// <summary>How a kernel wants to be started.</summary>
internal enum BootProtocol
{
    /// <summary>Linux, unpacked by the loader and entered in 64-bit mode.</summary>
    Linux64,

    /// <summary>Linux, entered in 32-bit mode; it unpacks itself.</summary>
    Linux32,

    /// <summary>Multiboot 1.</summary>
    Multiboot,
}

/// <summary>
/// A kernel file, read, unpacked and checked, ready for <see cref="KernelLoader"/>. Holds the unpacked kernel (tens of MiB)
/// outside the managed heap until it is disposed.
/// </summary>
public sealed class KernelImage : IDisposable
{
    /// <summary>Largest kernel file that is read, in bytes.</summary>
    public const long MaximumFile = KernelPayload.MaximumUnpacked;

    private readonly HostBuffer _file;
    private readonly HostBuffer _image;

    private KernelImage(string path, HostBuffer file, HostBuffer image, SetupHeader header)
    {
        _file = file;
        _image = image;
        Path = path;
        Header = header;
        Elf = ElfImage.Parse(path, image.Span);
        Protocol = ReferenceEquals(file, image) ? ProtocolOfElf() : Elf.Is64Bit && !header.Lacks64BitEntry
            ? BootProtocol.Linux64
            : BootProtocol.Linux32;
        Id = Convert.ToHexStringLower(SHA256.HashData(image.Span));
    }

    /// <summary>The file, as it was given.</summary>
    public string Path { get; }

    /// <summary>SHA-256 of the unpacked kernel, in hexadecimal. The same kernel packed in another way has the same.</summary>
    public string Id { get; }

    /// <summary>The GNU build id in hexadecimal, or null when the kernel has none.</summary>
    public string? BuildId => Elf.BuildId;

    /// <summary>The unpacked kernel, an ELF file. Not to be used after <see cref="Dispose"/>.</summary>
    public ReadOnlySpan<byte> Bytes => _image.Span;

    internal BootProtocol Protocol { get; }

    /// <summary>Whether it is a bzImage, which can be entered in 32-bit mode.</summary>
    internal bool IsPacked => !ReferenceEquals(_file, _image);

    /// <summary>The part of a bzImage that runs in protected mode and unpacks the kernel. Not to be used after <see cref="Dispose"/>.</summary>
    internal ReadOnlySpan<byte> ProtectedModeCode => _file.Span[(int)Header.ProtectedModeOffset..];

    internal SetupHeader Header { get; }

    internal ElfImage Elf { get; }

    /// <summary>Reads a kernel.</summary>
    /// <param name="path">A bzImage, an ELF64 vmlinux, or a multiboot image.</param>
    /// <exception cref="KernelImageException">The file cannot be read, or is not a kernel that can be started.</exception>
    public static KernelImage Open(string path)
    {
        HostBuffer file = ReadFile(path);
        HostBuffer? unpacked = null;
        try
        {
            SetupHeader header;
            if (ElfImage.IsPresent(file.Span))
            {
                header = SetupHeader.ForBareKernel();
                unpacked = file;
            }
            else
            {
                header = SetupHeader.Parse(path, file.Span);
                (int start, int length) = header.Payload(path, file.Length);
                unpacked = KernelPayload.Unpack(path, file, start, length);
            }

            return new KernelImage(path, file, unpacked, header);
        }
        catch (Exception e)
        {
            file.Dispose();
            unpacked?.Dispose();
            if (e is OutOfMemoryException)
            {
                throw new KernelImageException(path, "this host has not enough free memory to unpack it; free some", e);
            }

            throw;
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _image.Dispose();
        _file.Dispose();
    }

    private BootProtocol ProtocolOfElf()
    {
        bool multiboot = MultibootHeader.TryFind(_image.Span, out MultibootHeader header);
        if (!multiboot)
        {
            return Elf.Is64Bit
                ? BootProtocol.Linux64
                : throw new KernelImageException(Path, "a 32-bit ELF file without a multiboot header; use a bzImage or a multiboot image");
        }

        if (Elf.Is64Bit)
        {
            throw new KernelImageException(
                Path, "a multiboot image as an ELF64 file, which multiboot 1 does not know; convert it (objcopy -O elf32-i386)");
        }

        header.Check(Path);
        return BootProtocol.Multiboot;
    }

    private static HostBuffer ReadFile(string path)
    {
        try
        {
            long length = CheckedLength(path);
            using var handle = File.OpenHandle(path, options: FileOptions.SequentialScan);

            // A wrong file may be large: see whether it is a kernel at all before reading the rest.
            byte[] start = new byte[Math.Min(length, SetupHeader.MinimumFile)];
            int got = RandomAccess.Read(handle, start, fileOffset: 0);
            if (!ElfImage.IsPresent(start.AsSpan(0, got)) && !SetupHeader.IsPresent(start.AsSpan(0, got)))
            {
                throw new KernelImageException(path, "not a Linux kernel; give a bzImage (vmlinuz) or an ELF vmlinux");
            }

            var file = new HostBuffer((int)length);
            int position = 0;
            while (position < file.Length)
            {
                int read = RandomAccess.Read(handle, file.Span[position..], position);
                if (read == 0)
                {
                    file.Dispose();
                    throw new KernelImageException(path, "became shorter while it was read; try again");
                }

                position += read;
            }

            return file;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException or NotSupportedException)
        {
            throw new KernelImageException(path, $"cannot be read ({e.Message}); check the path and its permissions", e);
        }
    }

    private static long CheckedLength(string path)
    {
        if (Directory.Exists(path))
        {
            throw new KernelImageException(path, "a directory; give a kernel file");
        }

        var info = FileTarget.Of(path);
        if (!info.Exists)
        {
            throw new KernelImageException(path, "no such file; give a bzImage (vmlinuz) or an ELF vmlinux");
        }

        // Pipes and devices have length 0 too: opening one could wait for ever.
        return info.Length switch
        {
            0 => throw new KernelImageException(path, "empty, or not a regular file; give a bzImage (vmlinuz) or an ELF vmlinux"),
            > MaximumFile => throw new KernelImageException(
                path,
                $"{info.Length >> 20} MiB is too large for a kernel (at most {MaximumFile >> 20} MiB); "
                + "give a bzImage, or strip the vmlinux of its debug information"),
            _ => info.Length,
        };
    }
}
