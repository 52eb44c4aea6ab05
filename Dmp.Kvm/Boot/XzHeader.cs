using System.Buffers.Binary;

namespace Dmp.Kvm.Boot;

/// <summary>
/// Looks at the block headers of an .xz stream before anybody decodes it: a decoder allocates the dictionary that a header asks
/// for, and a header may ask for 4 GiB. (The .xz file format 1.1.0: 2.1.2 footer, 3.1 block header, 4 index, 5.3.1 LZMA2.)
/// </summary>
internal static class XzHeader
{
    /// <summary>Linux packs with 32 MiB; twice that is what is accepted.</summary>
    public const uint MaximumDictionary = 64u << 20;

    private const int StreamHeaderSize = 12;
    private const int FooterSize = 12;
    private const int Alignment = 4;
    private const int Lzma2Filter = 0x21;
    private const byte HasPackedSize = 0x40;
    private const byte HasUnpackedSize = 0x80;
    private const byte FilterCountMask = 0x03;

    /// <summary>Checks every block of the stream.</summary>
    /// <param name="stream">The whole stream, from its magic to its footer.</param>
    /// <exception cref="InvalidDataException">A block asks for too large a dictionary, or the index does not fit the stream.</exception>
    public static void CheckDictionaries(ReadOnlySpan<byte> stream)
    {
        if (stream.Length < StreamHeaderSize + FooterSize)
        {
            throw Damaged();
        }

        ReadOnlySpan<byte> footer = stream[^FooterSize..];
        long indexSize = (BinaryPrimitives.ReadUInt32LittleEndian(footer[sizeof(uint)..]) + 1L) * Alignment;
        long blocksEnd = stream.Length - FooterSize - indexSize;
        if (blocksEnd < StreamHeaderSize)
        {
            throw Damaged();
        }

        ReadOnlySpan<byte> index = stream[(int)blocksEnd..^FooterSize];
        if (index[0] != 0)
        {
            throw Damaged();
        }

        index = index[1..];
        ulong blocks = ReadNumber(ref index);
        long position = StreamHeaderSize;
        for (ulong block = 0; block < blocks; block++)
        {
            ulong unpadded = ReadNumber(ref index);
            _ = ReadNumber(ref index);
            if (unpadded == 0 || unpadded > (ulong)(blocksEnd - position))
            {
                throw Damaged();
            }

            CheckBlock(stream[(int)position..(int)blocksEnd]);
            position += ((long)unpadded + Alignment - 1) & -Alignment;
        }

        // Blocks that the index does not name would be decoded unseen.
        if (position != blocksEnd)
        {
            throw Damaged();
        }
    }

    private static void CheckBlock(ReadOnlySpan<byte> block)
    {
        int size = (block[0] + 1) * Alignment;
        if (block[0] == 0 || size > block.Length)
        {
            throw Damaged();
        }

        byte flags = block[1];
        ReadOnlySpan<byte> rest = block[2..(size - sizeof(uint))];
        if ((flags & HasPackedSize) != 0)
        {
            _ = ReadNumber(ref rest);
        }

        if ((flags & HasUnpackedSize) != 0)
        {
            _ = ReadNumber(ref rest);
        }

        for (int filter = 0; filter <= (flags & FilterCountMask); filter++)
        {
            ulong id = ReadNumber(ref rest);
            ulong properties = ReadNumber(ref rest);
            if (properties > (ulong)rest.Length)
            {
                throw Damaged();
            }

            if (id == Lzma2Filter && (properties != 1 || DictionarySize(rest[0]) > MaximumDictionary))
            {
                throw new InvalidDataException($"an xz dictionary of more than {MaximumDictionary >> 20} MiB");
            }

            rest = rest[(int)properties..];
        }
    }

    /// <summary>2^n or 3 * 2^(n-1), from 4 KiB up, in the low six bits.</summary>
    private static ulong DictionarySize(byte bits) => (2UL | (bits & 1u)) << (((bits & 0x3F) >> 1) + 11);

    /// <summary>Seven bits a byte, low ones first, at most nine bytes.</summary>
    private static ulong ReadNumber(ref ReadOnlySpan<byte> bytes)
    {
        ulong number = 0;
        for (int i = 0; i < 9 && i < bytes.Length; i++)
        {
            number |= (ulong)(bytes[i] & 0x7F) << (7 * i);
            if ((bytes[i] & 0x80) == 0)
            {
                bytes = bytes[(i + 1)..];
                return number;
            }
        }

        throw Damaged();
    }

    private static InvalidDataException Damaged() => new("the xz index does not fit the stream");
}
