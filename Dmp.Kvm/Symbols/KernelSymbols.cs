using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using Dmp.Kvm.Boot;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Symbols;

/// <summary>
/// The kernel's own symbol table (kallsyms), read out of its memory: a kernel without ELF symbols still carries it. Holds a
/// copy of the packed tables (a few MiB) and unpacks one name at a time, so that it stays right whatever the guest does.
/// </summary>
public sealed class KernelSymbols
{
    /// <summary>Longest name that the kernel itself allows (KSYM_NAME_LEN), with room for the type.</summary>
    private const int LongestName = 512;

    private readonly byte[] _tokens;
    private readonly int[] _tokenStarts;
    private readonly byte[] _names;
    private readonly int[] _markers;
    private readonly int[] _offsets;
    private readonly ulong _relativeBase;
    private readonly bool _absolutePercpu;
    private readonly ulong _end;

    private KernelSymbols(ReadOnlySpan<byte> image, ulong virtualBase, KallsymsLayout layout)
    {
        _tokens = image[layout.TokenTable..layout.TokenIndex].ToArray();
        _tokenStarts = new int[KallsymsLayout.Tokens];
        for (int token = 0; token < _tokenStarts.Length; token++)
        {
            _tokenStarts[token] = BinaryPrimitives.ReadUInt16LittleEndian(image[(layout.TokenIndex + (token * sizeof(ushort)))..]);
        }

        _names = image[layout.Names..layout.Markers].ToArray();
        _markers = Words(image[layout.Markers..], (layout.Count + KallsymsLayout.SymbolsPerMarker - 1) / KallsymsLayout.SymbolsPerMarker);
        _offsets = Words(image[layout.Offsets..], layout.Count);
        _absolutePercpu = KallsymsLayout.HasNegative(image.Slice(layout.Offsets, layout.Count * sizeof(int)));
        _relativeBase = layout.RelativeBase;
        _end = virtualBase + (ulong)image.Length;
    }

    /// <summary>Number of symbols.</summary>
    public int Count => _offsets.Length;

    /// <summary>Finds the tables in kernel memory.</summary>
    /// <param name="image">
    /// The kernel as it lies in memory from <paramref name="virtualBase"/> on, read-only data included (see
    /// <see cref="BootState.KernelStart"/> and <see cref="BootState.KernelLength"/>).
    /// </param>
    /// <param name="virtualBase">Virtual address of the first byte (<see cref="BootState.KernelVirtualBase"/>).</param>
    /// <returns>The symbols, or null when there is no table in a known layout.</returns>
    public static KernelSymbols? Find(ReadOnlySpan<byte> image, ulong virtualBase) =>
        KallsymsLayout.TryFind(image, out KallsymsLayout layout) ? new KernelSymbols(image, virtualBase, layout) : null;

    /// <summary>Finds the tables in the memory of a loaded guest, running or not: they are read-only data.</summary>
    /// <param name="ram">Guest RAM.</param>
    /// <param name="state">Where the kernel lies.</param>
    /// <returns>The symbols, or null when there is no table in a known layout.</returns>
    public static KernelSymbols? Find(IGuestRam ram, BootState state)
    {
        ArgumentNullException.ThrowIfNull(ram);
        ArgumentNullException.ThrowIfNull(state);
        int length = (int)Math.Min(state.KernelLength, int.MaxValue);
        return Find(ram.Slice(state.KernelStart, length), state.KernelVirtualBase.Value);
    }

    /// <summary>The symbol that an address lies in, as the kernel prints it: "native_save_fl+0x0".</summary>
    /// <param name="address">Virtual address.</param>
    /// <returns>Null for an address outside the kernel.</returns>
    public string? Describe(ulong address)
    {
        if (address >= _end || address < _relativeBase)
        {
            return null;
        }

        int index = LastAtOrBelow(address);
        if (index < 0 || Address(index) < _relativeBase)
        {
            return null;
        }

        ulong start = Address(index);

        // Of several names for one address the kernel prints the first.
        while (index > 0 && Address(index - 1) == start)
        {
            index--;
        }

        Span<byte> name = stackalloc byte[LongestName];
        int length = Decode(index, name);
        return string.Create(CultureInfo.InvariantCulture, $"{Encoding.ASCII.GetString(name[..length])}+0x{address - start:x}");
    }

    /// <summary>The range of the symbol that an address lies in: to the next symbol's start.</summary>
    /// <param name="address">Virtual address.</param>
    /// <returns>Null for an address outside the kernel.</returns>
    public (ulong Start, ulong End)? Range(ulong address)
    {
        if (address >= _end || address < _relativeBase)
        {
            return null;
        }

        int index = LastAtOrBelow(address);
        if (index < 0 || Address(index) < _relativeBase)
        {
            return null;
        }

        return (Address(index), index + 1 < Count ? Address(index + 1) : _end);
    }

    /// <summary>Looks a name up. Goes through all names: milliseconds, no memory.</summary>
    /// <param name="name">The symbol's name.</param>
    /// <param name="address">Its virtual address, or 0. Of several symbols with that name (static ones) the lowest.</param>
    public bool TryFind(string name, out ulong address)
    {
        ArgumentNullException.ThrowIfNull(name);
        address = 0;
        if (name.Length is 0 or >= LongestName || !Ascii.IsValid(name))
        {
            return false;
        }

        Span<byte> wanted = stackalloc byte[name.Length];
        Encoding.ASCII.GetBytes(name, wanted);
        Span<byte> candidate = stackalloc byte[LongestName];
        for (int index = 0, position = 0; index < Count; index++)
        {
            (int header, int packed) = KallsymsLayout.NameLength(_names, position);
            int length = Unpack(position + header, packed, candidate);
            if (candidate[..length].SequenceEqual(wanted))
            {
                address = Address(index);
                return true;
            }

            position += header + packed;
        }

        return false;
    }

    private ulong Address(int index) => KallsymsLayout.Address(_offsets[index], _relativeBase, _absolutePercpu);

    private int LastAtOrBelow(ulong address)
    {
        int low = 0;
        int high = Count;
        while (low < high)
        {
            int middle = low + ((high - low) / 2);
            if (Address(middle) <= address)
            {
                low = middle + 1;
            }
            else
            {
                high = middle;
            }
        }

        return low - 1;
    }

    private int Decode(int index, Span<byte> name)
    {
        int position = _markers[index / KallsymsLayout.SymbolsPerMarker];
        for (int skip = index % KallsymsLayout.SymbolsPerMarker; skip > 0; skip--)
        {
            (int header, int length) = KallsymsLayout.NameLength(_names, position);
            position += header + length;
        }

        (int start, int packed) = KallsymsLayout.NameLength(_names, position);
        return Unpack(position + start, packed, name);
    }

    /// <summary>Puts the tokens of one name together, without the first character: that is the symbol's type.</summary>
    /// <returns>Length of the name; it is cut off where <paramref name="name"/> ends.</returns>
    private int Unpack(int position, int packed, Span<byte> name)
    {
        int written = 0;
        bool typeSeen = false;
        foreach (byte token in _names.AsSpan(position, packed))
        {
            for (int i = _tokenStarts[token]; _tokens[i] != 0; i++)
            {
                if (!typeSeen)
                {
                    typeSeen = true;
                }
                else if (written < name.Length)
                {
                    name[written++] = _tokens[i];
                }
            }
        }

        return written;
    }

    private static int[] Words(ReadOnlySpan<byte> bytes, int count)
    {
        int[] words = new int[count];
        for (int i = 0; i < count; i++)
        {
            words[i] = BinaryPrimitives.ReadInt32LittleEndian(bytes[(i * sizeof(int))..]);
        }

        return words;
    }
}
