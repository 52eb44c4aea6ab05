using System.Buffers.Binary;
using System.IO.Compression;
using K4os.Compression.LZ4;
using SharpCompress.Compressors.LZMA;
using SharpCompress.Compressors.Xz;

namespace Dmp.Kvm.Boot;

/// <summary>
/// The compressed kernel in a bzImage. Its last four bytes are the uncompressed size (gzip has them as its own trailer, Linux
/// appends them to every other format), so there is one allocation of the right size and a bomb cannot outgrow it.
/// </summary>
internal static class KernelPayload
{
    /// <summary>Largest kernel that is unpacked, in bytes.</summary>
    public const int MaximumUnpacked = 512 << 20;

    private const int SizeTrailer = sizeof(uint);

    /// <summary>Unpacks.</summary>
    /// <param name="path">The file's name, for messages.</param>
    /// <param name="file">The whole bzImage.</param>
    /// <param name="start">First byte of the payload.</param>
    /// <param name="length">Bytes of the payload.</param>
    /// <returns>The unpacked kernel; the caller's to dispose.</returns>
    /// <exception cref="KernelImageException">The payload is damaged, too large, or of an unknown format.</exception>
    public static HostBuffer Unpack(string path, HostBuffer file, int start, int length)
    {
        ReadOnlySpan<byte> payload = file.Span.Slice(start, length);
        PayloadFormat format = Recognize(payload);
        switch (format)
        {
            case PayloadFormat.Elf:
                var plain = new HostBuffer(length);
                payload.CopyTo(plain.Span);
                return plain;
            case PayloadFormat.Bzip2 or PayloadFormat.Lzo:
                throw new KernelImageException(
                    path,
                    $"compressed with {Name(format)}, which is not supported; "
                    + "use a kernel compressed with zstd, lz4, xz or gzip");
            case PayloadFormat.Unknown:
                throw new KernelImageException(path, "the payload's compression is unknown; the file is damaged, get it again");
        }

        if (length <= SizeTrailer)
        {
            throw new KernelImageException(path, $"a payload of {length} bytes is no kernel; get the file again");
        }

        uint unpackedSize = BinaryPrimitives.ReadUInt32LittleEndian(payload[^SizeTrailer..]);
        if (unpackedSize is 0 or > MaximumUnpacked)
        {
            throw new KernelImageException(
                path,
                $"claims to unpack to {unpackedSize} bytes (at most {MaximumUnpacked >> 20} MiB); "
                + "the file is damaged, get it again");
        }

        var unpacked = new HostBuffer((int)unpackedSize);
        try
        {
            int written = Unpack(format, file, start, length, unpacked.Span);
            if (written != unpacked.Length)
            {
                throw new KernelImageException(
                    path, $"unpacks to {written} of {unpacked.Length} bytes; the file is damaged, get it again");
            }

            return unpacked;
        }
        catch (Exception e) when (e is not KernelImageException)
        {
            // Four libraries, each with exceptions of its own, all meaning the same: these bytes are not what was compressed.
            unpacked.Dispose();
            throw new KernelImageException(
                path, $"the {Name(format)} payload is damaged ({FirstLine(e)}); get the file again", e);
        }
        catch
        {
            unpacked.Dispose();
            throw;
        }
    }

    private static int Unpack(PayloadFormat format, HostBuffer file, int start, int length, Span<byte> target)
    {
        switch (format)
        {
            case PayloadFormat.Lz4Legacy:
                return UnpackLz4(file.Span.Slice(start, length - SizeTrailer), target);
            case PayloadFormat.Zstd:
                // In one call, not as a stream: so the target is the window and nothing else is allocated.
                using (var zstd = new ZstdSharp.Decompressor())
                {
                    return zstd.Unwrap(file.Span.Slice(start, length - SizeTrailer), target);
                }

            case PayloadFormat.Xz:
                XzHeader.CheckDictionaries(file.Span.Slice(start, length - SizeTrailer));
                using (UnmanagedMemoryStream packed = file.Read(start, length - SizeTrailer))
                using (var xz = new XZStream(packed))
                {
                    return ReadAll(xz, target);
                }

            case PayloadFormat.Lzma:
                using (UnmanagedMemoryStream packed = file.Read(start, length - SizeTrailer))
                using (Stream lzma = OpenLzma(packed, target.Length))
                {
                    return ReadAll(lzma, target);
                }

            default:
                using (UnmanagedMemoryStream packed = file.Read(start, length))
                using (var gzip = new GZipStream(packed, CompressionMode.Decompress))
                {
                    return ReadAll(gzip, target);
                }
        }
    }

    /// <summary>The legacy LZ4 frame: magic, then blocks, each with its packed size in four bytes before it.</summary>
    private static int UnpackLz4(ReadOnlySpan<byte> packed, Span<byte> target)
    {
        int written = 0;
        packed = packed[sizeof(uint)..];
        while (packed.Length >= sizeof(uint))
        {
            uint size = BinaryPrimitives.ReadUInt32LittleEndian(packed);
            packed = packed[sizeof(uint)..];
            if (size == 0 || size > packed.Length)
            {
                throw new InvalidDataException($"an lz4 block of {size} bytes where {packed.Length} are left");
            }

            int block = LZ4Codec.Decode(packed[..(int)size], target[written..]);
            if (block <= 0)
            {
                throw new InvalidDataException($"the lz4 block after {written} bytes cannot be decoded");
            }

            written += block;
            packed = packed[(int)size..];
        }

        return written;
    }

    private static LzmaStream OpenLzma(UnmanagedMemoryStream packed, int unpackedSize)
    {
        // properties (1 byte), dictionary size (4), unpacked size (8, here -1: unknown)
        byte[] header = new byte[13];
        packed.ReadExactly(header);

        // No match reaches further back than the output's start: a dictionary larger than the output only wastes memory.
        Span<byte> dictionary = header.AsSpan(1, sizeof(uint));
        uint asked = BinaryPrimitives.ReadUInt32LittleEndian(dictionary);
        BinaryPrimitives.WriteUInt32LittleEndian(dictionary, Math.Min(asked, (uint)unpackedSize));
        return LzmaStream.Create(header[..5], packed, packed.Length - header.Length, unpackedSize);
    }

    private static int ReadAll(Stream source, Span<byte> target)
    {
        int written = source.ReadAtLeast(target, target.Length, throwOnEndOfStream: false);
        Span<byte> more = stackalloc byte[1];
        if (written == target.Length && source.Read(more) != 0)
        {
            throw new InvalidDataException("longer than it says");
        }

        return written;
    }

    private static PayloadFormat Recognize(ReadOnlySpan<byte> payload) => payload switch
    {
        [0x7F, (byte)'E', (byte)'L', (byte)'F', ..] => PayloadFormat.Elf,
        [0x1F, 0x8B, ..] => PayloadFormat.Gzip,
        [0x28, 0xB5, 0x2F, 0xFD, ..] => PayloadFormat.Zstd,
        [0x02, 0x21, 0x4C, 0x18, ..] => PayloadFormat.Lz4Legacy,
        [0xFD, (byte)'7', (byte)'z', (byte)'X', (byte)'Z', 0x00, ..] => PayloadFormat.Xz,
        [0x5D, 0x00, 0x00, ..] => PayloadFormat.Lzma,
        [(byte)'B', (byte)'Z', (byte)'h', ..] => PayloadFormat.Bzip2,
        [0x89, (byte)'L', (byte)'Z', (byte)'O', ..] => PayloadFormat.Lzo,
        _ => PayloadFormat.Unknown,
    };

    private static string Name(PayloadFormat format) => format switch
    {
        PayloadFormat.Lz4Legacy => "lz4",
        _ => format.ToString().ToLowerInvariant(),
    };

    private static string FirstLine(Exception e) => e.Message.Split('\n', 2)[0].Trim().TrimEnd('.');

    private enum PayloadFormat
    {
        Unknown,
        Elf,
        Gzip,
        Zstd,
        Lz4Legacy,
        Xz,
        Lzma,
        Bzip2,
        Lzo,
    }
}
