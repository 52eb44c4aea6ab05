using System.Buffers.Binary;
using System.Text;

namespace Dmp.Kvm.Boot;

/// <summary>
/// As much of ACPI Machine Language as a small DSDT takes (ACPI 6.4, chapter 20; resource descriptors: 6.4). Each method gives
/// the encoding of one term; terms nest by concatenation.
/// </summary>
internal static class Aml
{
    private const byte ZeroOp = 0x00;
    private const byte OneOp = 0x01;
    private const byte NameOp = 0x08;
    private const byte BytePrefix = 0x0A;
    private const byte DWordPrefix = 0x0C;
    private const byte ScopeOp = 0x10;
    private const byte BufferOp = 0x11;
    private const byte PackageOp = 0x12;
    private const byte ExtendedPrefix = 0x5B;
    private const byte DeviceOp = 0x82;
    private const byte RootPrefix = (byte)'\\';
    private const byte NamePadding = (byte)'_';

    private const byte IoPortDescriptor = 0x47;
    private const byte Decode16 = 0x01;
    private const byte IrqDescriptor = 0x22;
    private const byte EndTag = 0x79;

    private const int SegmentLength = 4;

    /// <summary>Name (path, value).</summary>
    public static byte[] Name(string path, byte[] value) => [NameOp, .. Path(path), .. value];

    /// <summary>Scope (path) { terms }.</summary>
    public static byte[] Scope(string path, params byte[][] terms) => [ScopeOp, .. Packaged([.. Path(path), .. Join(terms)])];

    /// <summary>Device (path) { terms }.</summary>
    public static byte[] Device(string path, params byte[][] terms) =>
        [ExtendedPrefix, DeviceOp, .. Packaged([.. Path(path), .. Join(terms)])];

    /// <summary>Package () { elements }.</summary>
    public static byte[] Package(params byte[][] elements) => [PackageOp, .. Packaged([(byte)elements.Length, .. Join(elements)])];

    /// <summary>An integer of one byte.</summary>
    public static byte[] Byte(byte value) => value switch
    {
        0 => [ZeroOp],
        1 => [OneOp],
        _ => [BytePrefix, value],
    };

    /// <summary>EisaId ("PNP0501"): three letters of five bits and four hexadecimal digits, big endian.</summary>
    public static byte[] EisaId(string id)
    {
        uint letters = 0;
        foreach (char letter in id[..3])
        {
            letters = (letters << 5) | (uint)(letter - '@');
        }

        byte[] encoded = [DWordPrefix, 0, 0, 0, 0];
        BinaryPrimitives.WriteUInt16BigEndian(encoded.AsSpan(1), (ushort)letters);
        BinaryPrimitives.WriteUInt16BigEndian(encoded.AsSpan(3), Convert.ToUInt16(id[3..], 16));
        return encoded;
    }

    /// <summary>ResourceTemplate () { descriptors }. The end tag's checksum is zero: "not checked".</summary>
    public static byte[] ResourceTemplate(params byte[][] descriptors)
    {
        byte[] bytes = [.. Join(descriptors), EndTag, 0];
        return [BufferOp, .. Packaged([.. Byte((byte)bytes.Length), .. bytes])];
    }

    /// <summary>IO (Decode16, first, first, 1, count).</summary>
    public static byte[] Io(ushort first, byte count)
    {
        byte low = (byte)first;
        byte high = (byte)(first >> 8);
        return [IoPortDescriptor, Decode16, low, high, low, high, 1, count];
    }

    /// <summary>IRQNoFlags () { irq }: edge triggered, active high.</summary>
    public static byte[] Irq(byte irq)
    {
        ushort mask = (ushort)(1 << irq);
        return [IrqDescriptor, (byte)mask, (byte)(mask >> 8)];
    }

    /// <summary>A content with its length before it: PkgLength counts itself, in one byte up to 63, else four bits and then bytes.</summary>
    private static byte[] Packaged(byte[] content)
    {
        int length = content.Length + 1;
        if (length < 1 << 6)
        {
            return [(byte)length, .. content];
        }

        length++;
        if (length >= 1 << 12)
        {
            throw new ArgumentException("an AML term of 4 KiB or more", nameof(content));
        }

        return [(byte)((1 << 6) | (length & 0x0F)), (byte)(length >> 4), .. content];
    }

    /// <summary>One name segment, with or without the root's backslash, filled up with underscores.</summary>
    private static byte[] Path(string path)
    {
        bool absolute = path[0] == RootPrefix;
        byte[] segment = Encoding.ASCII.GetBytes(path[(absolute ? 1 : 0)..].PadRight(SegmentLength, (char)NamePadding));
        return absolute ? [RootPrefix, .. segment] : segment;
    }

    private static byte[] Join(byte[][] terms) => [.. terms.SelectMany(term => term)];
}
