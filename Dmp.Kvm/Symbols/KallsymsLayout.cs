using System.Buffers.Binary;

namespace Dmp.Kvm.Symbols;

/// <summary>
/// Where the kallsyms tables of a kernel lie. No symbol says so: they are found by their shape. The token table is found by
/// the ten digits, which always stand for themselves; the markers by being long, rising and starting with 0; the rest by
/// adding up. Each table begins on a multiple of 8, and every find is checked against another table.
/// </summary>
/// <remarks>
/// Order in memory (what scripts/kallsyms.c of the kernel writes out):
/// up to 6.3: offsets, relative_base, num_syms, names, markers, [seqs_of_names,] token_table, token_index;
/// from 6.4: num_syms, names, markers, token_table, token_index, offsets, relative_base, seqs_of_names.
/// </remarks>
internal readonly record struct KallsymsLayout(
    int TokenTable, int TokenIndex, int Names, int Markers, int Count, int Offsets, ulong RelativeBase)
{
    /// <summary>Tokens: one for each value of a byte.</summary>
    public const int Tokens = 256;

    /// <summary>Every 256th symbol has a marker.</summary>
    public const int SymbolsPerMarker = 256;

    private const int TokenIndexSize = Tokens * sizeof(ushort);
    private const int Alignment = 8;

    /// <summary>How far before the token table the markers may begin: 6.3 has three bytes for every symbol in between.</summary>
    private const int MarkersReach = 4 << 20;

    /// <summary>Fewer have no kernel; it takes two to tell markers from noise.</summary>
    private const int FewestMarkers = 2;

    /// <summary>A symbol takes from two bytes (length and a token) to a few hundred.</summary>
    private const uint ShortestGroup = SymbolsPerMarker * 2;
    private const uint LongestGroup = SymbolsPerMarker * 258;

    /// <summary>Places that are looked at more closely before giving up: noise must not keep anybody waiting.</summary>
    private const int MostTokenTables = 4;
    private const int MostMarkers = 4096;

    /// <summary>Finds the tables.</summary>
    /// <param name="image">Kernel memory that contains them.</param>
    /// <param name="layout">Where they are, as indices into <paramref name="image"/>.</param>
    public static bool TryFind(ReadOnlySpan<byte> image, out KallsymsLayout layout)
    {
        int from = 0;
        for (int table = 0; table < MostTokenTables; table++)
        {
            if (!TryFindTokens(image, ref from, out int tokenTable, out int tokenIndex))
            {
                break;
            }

            if (TryFindNames(image, tokenTable, out int names, out int markers, out int count)
                && TryFindOffsets(image, names, tokenIndex, count, out int offsets, out ulong relativeBase))
            {
                layout = new KallsymsLayout(tokenTable, tokenIndex, names, markers, count, offsets, relativeBase);
                return true;
            }
        }

        layout = default;
        return false;
    }

    /// <summary>The length of a name at a position, and the bytes that the length takes: one, or two if its top bit is set.</summary>
    public static (int Header, int Length) NameLength(ReadOnlySpan<byte> names, int position)
    {
        const int continued = 0x80;
        int first = names[position];
        return first < continued || position + 1 >= names.Length
            ? (1, first)
            : (2, (first & (continued - 1)) | (names[position + 1] << 7));
    }

    /// <summary>The address behind an offset entry.</summary>
    /// <param name="offset">The entry.</param>
    /// <param name="relativeBase">kallsyms_relative_base.</param>
    /// <param name="absolutePercpu">Whether entries from 0 up are absolute (CONFIG_KALLSYMS_ABSOLUTE_PERCPU).</param>
    public static ulong Address(int offset, ulong relativeBase, bool absolutePercpu)
    {
        if (!absolutePercpu)
        {
            return relativeBase + (uint)offset;
        }

        return offset >= 0 ? (ulong)offset : relativeBase - 1 - (ulong)(long)offset;
    }

    private static bool TryFindTokens(ReadOnlySpan<byte> image, ref int from, out int table, out int index)
    {
        ReadOnlySpan<byte> digits = "0\01\02\03\04\05\06\07\08\09\0"u8;
        while (image[from..].IndexOf(digits) is >= 0 and int found)
        {
            int zero = from + found;
            from = zero + 1;
            if (TryFindIndex(image, zero, out table, out index))
            {
                return true;
            }
        }

        table = index = 0;
        return false;
    }

    /// <summary>From the token "0" on to the last one; the index after it says where the first one is.</summary>
    private static bool TryFindIndex(ReadOnlySpan<byte> image, int zeroToken, out int table, out int index)
    {
        table = index = 0;
        int position = zeroToken;
        for (int token = '0'; token < Tokens; token++)
        {
            int length = image[position..].IndexOf((byte)0);
            if (length < 0 || position + length - zeroToken > ushort.MaxValue)
            {
                return false;
            }

            position += length + 1;
        }

        index = Up(position);
        if (index > image.Length - TokenIndexSize)
        {
            return false;
        }

        table = zeroToken - U16(image, index + ('0' * sizeof(ushort)));
        return table >= 0 && IndexFits(image, table, index, position);
    }

    /// <summary>Every entry but the first points just behind a zero, and they rise.</summary>
    private static bool IndexFits(ReadOnlySpan<byte> image, int table, int index, int tableEnd)
    {
        int previous = U16(image, index);
        if (previous != 0)
        {
            return false;
        }

        for (int token = 1; token < Tokens; token++)
        {
            int entry = U16(image, index + (token * sizeof(ushort)));
            if (entry <= previous || table + entry >= tableEnd || image[table + entry - 1] != 0)
            {
                return false;
            }

            previous = entry;
        }

        return true;
    }

    private static bool TryFindNames(ReadOnlySpan<byte> image, int tokenTable, out int names, out int markers, out int count)
    {
        int lowest = Math.Max(0, tokenTable - MarkersReach);
        int tried = 0;
        for (markers = tokenTable & -Alignment; markers > lowest; markers -= Alignment)
        {
            int rising = RisingMarkers(image[markers..tokenTable]);
            if (rising < FewestMarkers)
            {
                continue;
            }

            if (TryFindCount(image, markers, rising, out names, out count))
            {
                return true;
            }

            if (++tried == MostMarkers)
            {
                break;
            }
        }

        names = count = 0;
        return false;
    }

    private static int RisingMarkers(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length < sizeof(uint) || U32(bytes, 0) != 0)
        {
            return 0;
        }

        int count = 1;
        uint previous = 0;
        for (int position = sizeof(uint); position <= bytes.Length - sizeof(uint); position += sizeof(uint))
        {
            uint marker = U32(bytes, position);
            if (marker <= previous || marker - previous is < ShortestGroup or > LongestGroup)
            {
                break;
            }

            previous = marker;
            count++;
        }

        return count;
    }

    /// <summary>num_syms stands before the names, and with the right one the names end where the markers begin.</summary>
    private static bool TryFindCount(ReadOnlySpan<byte> image, int markers, int rising, out int names, out int count)
    {
        // The run may have run on into what follows, so that fewer of them are markers: each count is tried with its own place.
        uint first = U32(image, markers + sizeof(uint));
        int nearest = markers - (int)first;
        long farthest = markers - ((long)U32(image, markers + ((rising - 1) * sizeof(uint))) + LongestGroup);
        for (names = nearest & -Alignment; names >= Alignment && names >= farthest; names -= Alignment)
        {
            count = (int)U32(image, names - Alignment);
            int groups = count / SymbolsPerMarker + (count % SymbolsPerMarker == 0 ? 0 : 1);
            if (count > 0 && groups >= FewestMarkers && groups <= rising
                && U32(image, names - Alignment + sizeof(uint)) == 0
                && NamesEndAtMarkers(image, names, markers, count))
            {
                return true;
            }
        }

        names = count = 0;
        return false;
    }

    private static bool NamesEndAtMarkers(ReadOnlySpan<byte> image, int names, int markers, int count)
    {
        int position = names;
        for (int symbol = 0; symbol < count; symbol++)
        {
            if (symbol % SymbolsPerMarker == 0
                && U32(image, markers + (symbol / SymbolsPerMarker * sizeof(uint))) != position - names)
            {
                return false;
            }

            if (position >= markers)
            {
                return false;
            }

            (int header, int length) = NameLength(image, position);
            if (length == 0)
            {
                return false;
            }

            position += header + length;
        }

        return Up(position) == markers;
    }

    private static bool TryFindOffsets(
        ReadOnlySpan<byte> image, int names, int tokenIndex, int count, out int offsets, out ulong relativeBase)
    {
        int size = Up(count * sizeof(uint));

        // From 6.4: behind the token index. Before: in front of num_syms, relative_base last.
        int behind = tokenIndex + TokenIndexSize;
        int before = names - Alignment - sizeof(ulong) - size;
        return OffsetsFit(image, behind, count, size, out offsets, out relativeBase)
            || OffsetsFit(image, before, count, size, out offsets, out relativeBase);
    }

    /// <summary>Addresses never fall, and their base is in the upper half.</summary>
    private static bool OffsetsFit(ReadOnlySpan<byte> image, int start, int count, int size, out int offsets, out ulong relativeBase)
    {
        offsets = start;
        relativeBase = 0;
        if (start < 0 || start > image.Length - size - sizeof(ulong))
        {
            return false;
        }

        relativeBase = BinaryPrimitives.ReadUInt64LittleEndian(image[(start + size)..]);
        if ((long)relativeBase >= 0)
        {
            return false;
        }

        bool absolutePercpu = HasNegative(image.Slice(start, count * sizeof(int)));
        ulong previous = 0;
        for (int i = 0; i < count; i++)
        {
            ulong address = Address((int)U32(image, start + (i * sizeof(int))), relativeBase, absolutePercpu);
            if (address < previous)
            {
                return false;
            }

            previous = address;
        }

        return true;
    }

    /// <summary>A kernel is smaller than 2 GiB: an entry with the top bit set is negative, so the others are absolute.</summary>
    public static bool HasNegative(ReadOnlySpan<byte> offsets)
    {
        for (int i = sizeof(int) - 1; i < offsets.Length; i += sizeof(int))
        {
            if ((sbyte)offsets[i] < 0)
            {
                return true;
            }
        }

        return false;
    }

    private static int Up(int position) => (position + Alignment - 1) & -Alignment;

    private static ushort U16(ReadOnlySpan<byte> bytes, int position) => BinaryPrimitives.ReadUInt16LittleEndian(bytes[position..]);

    private static uint U32(ReadOnlySpan<byte> bytes, int position) => BinaryPrimitives.ReadUInt32LittleEndian(bytes[position..]);
}
