using System.Buffers.Binary;

namespace Dmp.Kvm.Boot;

/// <summary>The header of a multiboot 1 image (Multiboot Specification 0.6.96, 3.1).</summary>
internal readonly record struct MultibootHeader
{
    /// <summary>How far from the beginning of the file the header may end.</summary>
    public const int Within = 8192;

    private const uint Magic = 0x1BADB002;
    private const int Size = 3 * sizeof(uint);

    private readonly uint _flags;

    private MultibootHeader(uint flags)
    {
        _flags = flags;
    }

    /// <summary>Requirements of an image; those of the lower half must be met, or the image must not be started.</summary>
    [Flags]
    private enum Requirements : uint
    {
        PageAlignedModules = 1 << 0,
        MemoryInformation = 1 << 1,
        VideoMode = 1 << 2,
        MustBeMet = 0xFFFF,
        AddressesInHeader = 1 << 16,
    }

    /// <summary>Looks for the header.</summary>
    /// <param name="file">The file, or its first <see cref="Within"/> bytes.</param>
    /// <param name="header">The header.</param>
    /// <returns>Whether there is one.</returns>
    public static bool TryFind(ReadOnlySpan<byte> file, out MultibootHeader header)
    {
        file = file[..Math.Min(file.Length, Within)];
        for (; file.Length >= Size; file = file[sizeof(uint)..])
        {
            uint flags = U32(file, sizeof(uint));
            if (U32(file, 0) == Magic && Magic + flags + U32(file, 2 * sizeof(uint)) == 0)
            {
                header = new MultibootHeader(flags);
                return true;
            }
        }

        header = default;
        return false;
    }

    /// <summary>Checks that everything the image demands can be given.</summary>
    /// <param name="path">The file's name, for messages.</param>
    /// <exception cref="KernelImageException">It cannot.</exception>
    public void Check(string path)
    {
        var flags = (Requirements)_flags;
        if (flags.HasFlag(Requirements.AddressesInHeader))
        {
            throw new KernelImageException(
                path, "a multiboot image with its addresses in the header (flag 16); link it as ELF32 and clear that flag");
        }

        if (flags.HasFlag(Requirements.VideoMode))
        {
            throw new KernelImageException(
                path, "a multiboot image that demands a video mode (flag 2), and this machine has no screen; clear that flag");
        }

        Requirements unknown =
            flags & Requirements.MustBeMet & ~(Requirements.PageAlignedModules | Requirements.MemoryInformation);
        if (unknown != 0)
        {
            throw new KernelImageException(
                path, $"a multiboot image with the unknown requirements 0x{(uint)unknown:x}; use one for multiboot 1");
        }
    }

    private static uint U32(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt32LittleEndian(bytes[offset..]);
}
