using System.Buffers.Binary;
using System.Text;
using Dmp.Kvm.Symbols;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Symbols;

public class KernelSymbolsSpecs
{
    private const ulong Base = 0xFFFFFFFF81000000;
    private const int SymbolCount = 1000;

    [Theory(DisplayName = "The tables are found in the layouts before and after Linux 6.4")]
    [InlineData(false)]
    [InlineData(true)]
    public void Layouts(bool offsetsLast)
    {
        KernelSymbols symbols = KernelSymbols.Find(Image(offsetsLast), Base)!;
        Assert.Equal(SymbolCount, symbols.Count);
        for (int i = 0; i < SymbolCount; i++)
        {
            Assert.True(symbols.TryFind($"function_{i}", out ulong address));
            Assert.Equal(Base + ((ulong)i * 16), address);
            Assert.Equal($"function_{i}+0x5", symbols.Describe(address + 5));
        }
    }

    [Fact(DisplayName = "Addresses outside the kernel and names it does not have give nothing")]
    public void Outside()
    {
        KernelSymbols symbols = KernelSymbols.Find(Image(offsetsLast: true), Base)!;
        foreach (ulong address in new[] { 0UL, Base - 1, Base + (16 << 20), ulong.MaxValue })
        {
            Assert.Null(symbols.Describe(address));
        }

        foreach (string name in new[] { "", "function_", "function_1000", "tfunction_1", "\u00fc", new string('x', 10_000) })
        {
            Assert.False(symbols.TryFind(name, out _));
        }
    }

    [Property(DisplayName = "Bytes without tables give nothing", MaxTest = 200)]
    public void Garbage(byte[] bytes) => Assert.Null(KernelSymbols.Find(bytes, Base));

    [Theory(DisplayName = "Damaged tables give nothing or something, but never an error")]
    [InlineData(false)]
    [InlineData(true)]
    public void Damaged(bool offsetsLast)
    {
        byte[] good = Image(offsetsLast);
        var random = new Random(3);
        for (int round = 0; round < 300; round++)
        {
            byte[] bad = [.. good];
            for (int change = random.Next(1, 20); change > 0; change--)
            {
                bad[random.Next(bad.Length)] = (byte)random.Next(256);
            }

            Look(KernelSymbols.Find(bad, Base));
            Look(KernelSymbols.Find(good.AsSpan(0, random.Next(good.Length)), Base));
            Look(KernelSymbols.Find(good.AsSpan(random.Next(good.Length)), Base));
        }
    }

    private static void Look(KernelSymbols? symbols)
    {
        _ = symbols?.Describe(Base + 1234);
        _ = symbols?.TryFind("function_999", out _);
    }

    /// <summary>Tables as scripts/kallsyms.c lays them out: every character is its own token, and 1 stands for "tfunction_".</summary>
    private static byte[] Image(bool offsetsLast)
    {
        var image = new List<byte>(Encoding.ASCII.GetBytes("some read-only data "));
        var names = new List<byte>();
        var markers = new List<byte>();
        var offsets = new List<byte>();
        for (int i = 0; i < SymbolCount; i++)
        {
            if (i % 256 == 0)
            {
                markers.AddRange(Word(names.Count));
            }

            byte[] name = [1, .. Encoding.ASCII.GetBytes($"{i}")];
            names.AddRange([(byte)name.Length, .. name]);

            // CONFIG_KALLSYMS_ABSOLUTE_PERCPU: below zero means relative.
            offsets.AddRange(Word(-1 - (i * 16)));
        }

        var tokens = new List<byte>();
        var index = new List<byte>();
        for (int token = 0; token < 256; token++)
        {
            index.AddRange(Word(tokens.Count)[..2]);
            tokens.AddRange(token == 1 ? Encoding.ASCII.GetBytes("tfunction_") : token == 0 ? [] : [(byte)token]);
            tokens.Add(0);
        }

        byte[] relativeBase = new byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(relativeBase, Base);
        List<byte>[] tail = [offsets, [.. relativeBase]];
        List<byte>[] middle = [[.. Word(SymbolCount)], names, markers, tokens, index];
        foreach (List<byte> table in offsetsLast ? [.. middle, .. tail] : (List<byte>[])[.. tail, .. middle])
        {
            Align(image);
            image.AddRange(table);
        }

        Align(image);
        image.AddRange(new byte[SymbolCount * 16]);
        return [.. image];
    }

    private static void Align(List<byte> image)
    {
        while (image.Count % 8 != 0)
        {
            image.Add(0);
        }
    }

    private static byte[] Word(int value)
    {
        byte[] bytes = new byte[4];
        BinaryPrimitives.WriteInt32LittleEndian(bytes, value);
        return bytes;
    }
}
