using System.Buffers.Binary;
using System.IO.Compression;
using K4os.Compression.LZ4;

namespace Dmp.Kvm.Specs.Boot;

/// <summary>Small kernels made to order: an ELF with two segments and a build id, and bzImages around it.</summary>
internal static class TestKernel
{
    public const ulong Start = 0x1000000;
    public const ulong VirtualBase = 0xFFFFFFFF81000000;
    public const int TextSize = 0x2000;
    public const ulong DataStart = Start + 0x200000;
    public const int DataSize = 0x100;
    public const ulong DataMemory = 0x5000;
    public const string BuildId = "00112233445566778899aabbccddeeff00112233";

    private const int TextOffset = 0x1000;
    private const int DataOffset = TextOffset + TextSize;
    private const int NoteOffset = 0x200;
    private const int SetupSectors = 1;
    private const int ProtectedMode = (SetupSectors + 1) * 512;
    private const int PayloadGap = 0x40;

    /// <summary>Where the payload begins in a bzImage.</summary>
    public const int PayloadStart = ProtectedMode + PayloadGap;

    public static byte[] Elf()
    {
        byte[] elf = new byte[DataOffset + DataSize];
        "\u007fELF\u0002\u0001\u0001"u8.CopyTo(elf);
        Put(elf, 16, (ushort)2);
        Put(elf, 18, (ushort)62);
        Put(elf, 24, Start);
        Put(elf, 32, 64UL);
        Put(elf, 54, (ushort)56);
        Put(elf, 56, (ushort)3);
        ProgramHeader(elf, 0, type: 1, TextOffset, VirtualBase, Start, TextSize, TextSize);
        ProgramHeader(elf, 1, type: 1, DataOffset, VirtualBase + 0x200000, DataStart, DataSize, DataMemory);
        ProgramHeader(elf, 2, type: 4, NoteOffset, 0, 0, 0x24, 0x24);
        Put(elf, NoteOffset, 4u);
        Put(elf, NoteOffset + 4, 20u);
        Put(elf, NoteOffset + 8, 3u);
        "GNU\0"u8.CopyTo(elf.AsSpan(NoteOffset + 12));
        Convert.FromHexString(BuildId).CopyTo(elf, NoteOffset + 16);
        for (int i = TextOffset; i < elf.Length; i++)
        {
            elf[i] = (byte)(i / 7 | 1);
        }

        return elf;
    }

    public static byte[] BzImage(byte[] payload)
    {
        byte[] file = new byte[PayloadStart + payload.Length + 16];
        file[0x1F1] = SetupSectors;
        Put(file, 0x1FE, (ushort)0xAA55);
        file[0x200] = 0xEB;
        file[0x201] = 0x6A;
        "HdrS"u8.CopyTo(file.AsSpan(0x202));
        Put(file, 0x206, (ushort)0x020F);
        Put(file, 0x22C, 0x7FFFFFFFu);
        Put(file, 0x236, (ushort)1);
        Put(file, 0x238, 2047u);
        Put(file, 0x248, (uint)PayloadGap);
        Put(file, 0x24C, (uint)payload.Length);
        Put(file, 0x258, Start);
        Put(file, 0x260, 0x400000u);
        payload.CopyTo(file, PayloadStart);
        return file;
    }

    public static byte[] Gzip(byte[] image)
    {
        using var packed = new MemoryStream();
        using (var gzip = new GZipStream(packed, CompressionLevel.Optimal, leaveOpen: true))
        {
            gzip.Write(image);
        }

        return packed.ToArray();
    }

    public static byte[] Zstd(byte[] image)
    {
        using var zstd = new ZstdSharp.Compressor();
        return [.. zstd.Wrap(image), .. Size(image)];
    }

    public static byte[] Lz4(byte[] image)
    {
        byte[] block = new byte[LZ4Codec.MaximumOutputSize(image.Length)];
        int length = LZ4Codec.Encode(image, block);
        return [0x02, 0x21, 0x4C, 0x18, .. Size(block[..length]), .. block[..length], .. Size(image)];
    }

    /// <summary>What `xz --check=crc32 --x86 --lzma2=dict=1MiB` makes of <see cref="Elf"/>.</summary>
    public static byte[] Xz() => [.. Convert.FromBase64String(PackedXz), .. Size(Elf())];

    /// <summary>What `xz --format=lzma` makes of <see cref="Elf"/>.</summary>
    public static byte[] Lzma() => [.. Convert.FromBase64String(PackedLzma), .. Size(Elf())];

    public static byte[] With(this byte[] image, int offset, params byte[] bytes)
    {
        byte[] changed = [.. image];
        bytes.CopyTo(changed, offset);
        return changed;
    }

    public static byte[] With(this byte[] image, int offset, ulong value)
    {
        byte[] changed = [.. image];
        Put(changed, offset, value);
        return changed;
    }

    private static byte[] Size(byte[] image)
    {
        byte[] size = new byte[4];
        Put(size, 0, (uint)image.Length);
        return size;
    }

    private static void ProgramHeader(
        byte[] elf, int index, uint type, ulong offset, ulong virtualAddress, ulong physical, ulong fileSize, ulong memorySize)
    {
        int at = 64 + (index * 56);
        Put(elf, at, type);
        Put(elf, at + 8, offset);
        Put(elf, at + 16, virtualAddress);
        Put(elf, at + 24, physical);
        Put(elf, at + 32, fileSize);
        Put(elf, at + 40, memorySize);
    }

    private static void Put(byte[] bytes, int offset, ushort value) => BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(offset), value);

    private static void Put(byte[] bytes, int offset, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(offset), value);

    private static void Put(byte[] bytes, int offset, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(offset), value);

    private const string PackedXz =
        "/Td6WFoAAAFpIt42AgEEACEBEACLIW9J4DD/ATRdAD+RRYRoPYmm2orMk+ZQTvSS6L+tU8lfVwzwTTIkaMrfKk5jhw5WfppfnU+FLY2hc+MTWN"
        + "yI6+PEVSYWQb8zIaOYDH0cOMJpqb3m/5+DO7PvQ601OIiCfuZ6DkL5I2TPOQnW4DAT3dNRlW1h+p8Q2Zq5k4S/m3BRvP/NHjTRpvUER+Gz7n1u"
        + "ASpzH7Epg5f2veiwr++PvNU8oEddDK66KlveRlRb+lIw5qNgqQf0L8JJYEthg/YNwkJGRp44FJl1Ox0OlEMcaSFaW3T4hNv5Gcs1irHfqRPkwR"
        + "6ni2q3IotUtfDR7+es5asjxiDkpAhVKUoCRgXbkoFZsprxPjG0TDzLDBm0013ellCoB9VoCvvRINGf/zDzUQPZfl91WCHBgBLjPGAvGNCj3rEP"
        + "7SQ2xc2jqaQAADztnf0AAcwCgGIAAAfwtXk+MA2LAgAAAAABWVo=";

    private const string PackedLzma =
        "XQAAgAD//////////wA/kUWEaD2JptqKzJPmUE70kui/rVPJX1cM8E0yJGjK3ypOY4cOVn6aX51PhS2NoXPjE1jciOvjxFUmFkG/MyGjmAx9HD"
        + "jCaam95v+fgzuz70OtNTiIgn7meg5C+SNkzzkJ1uAwE93TUZVtYfqfENmauZOEv5twUbz/zR400ab1BEfhs+59bgEqcx+xKYOX9r3osK/vj7zV"
        + "PKBHXQyuuipb3kZUW/pSMOajYKkH9C/CSWBLYYP2DcJCRkaeOBSZdTsdDpRDHGkhWlt0+ITb+RnLNYqx36kT5MEep4tqtyKLVLXw0e/nrOWrI8"
        + "Yg5KQIVSlKAkYF25KBWbKa8T4xtEw8ywwZtNNd3pZQqAfVaAr70SDRn/8w81ED2X5fdVghwYAS4zxgLxjQo96xD+0kNsXNpIQDO///uEgPJg==";
}
