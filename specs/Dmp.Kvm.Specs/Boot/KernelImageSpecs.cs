using System.Security.Cryptography;
using Dmp.Kvm.Boot;

namespace Dmp.Kvm.Specs.Boot;

public class KernelImageSpecs
{
    public static TheoryData<string> Formats => ["gzip", "zstd", "lz4", "xz", "lzma", "none"];

    [Theory(DisplayName = "A bzImage is unpacked whatever it is compressed with")]
    [MemberData(nameof(Formats))]
    public void Unpacks(string format)
    {
        using KernelImage kernel = KernelFile.Open(TestKernel.BzImage(Payload(format)));
        Assert.True(kernel.Bytes.SequenceEqual(TestKernel.Elf()));
        Assert.Equal(TestKernel.BuildId, kernel.BuildId);
        Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(TestKernel.Elf())), kernel.Id);
    }

    [Fact(DisplayName = "A bare vmlinux is taken as it is")]
    public void BareKernel()
    {
        using KernelImage kernel = KernelFile.Open(TestKernel.Elf());
        Assert.True(kernel.Bytes.SequenceEqual(TestKernel.Elf()));
    }

    [Fact(DisplayName = "A symbolic link is followed: a link has a length of its own")]
    public void LinkedKernel()
    {
        string directory = Directory.CreateTempSubdirectory("dmp-spec").FullName;
        string target = Path.Combine(directory, "vmlinux");
        string link = Path.Combine(directory, "vmlinuz");
        File.WriteAllBytes(target, TestKernel.Elf());
        _ = File.CreateSymbolicLink(link, target);
        using (KernelImage kernel = KernelImage.Open(link))
        {
            Assert.True(kernel.Bytes.SequenceEqual(TestKernel.Elf()));
        }

        Directory.Delete(directory, recursive: true);
    }

    [Fact(DisplayName = "A file that is no kernel is refused, with the path and what to give instead")]
    public void NoKernel()
    {
        Assert.Contains("not a Linux kernel", KernelFile.Refusal("#!/bin/sh"u8.ToArray()), StringComparison.Ordinal);
        Assert.Contains("not a Linux kernel", KernelFile.Refusal(new byte[100_000]), StringComparison.Ordinal);
        Assert.Contains("empty", KernelFile.Refusal([]), StringComparison.Ordinal);
        Assert.Contains("no such file", Assert.Throws<KernelImageException>(() => KernelImage.Open("/nowhere/at/all")).Message, StringComparison.Ordinal);
        Assert.Contains("directory", Assert.Throws<KernelImageException>(() => KernelImage.Open("/tmp")).Message, StringComparison.Ordinal);
        Assert.Contains("regular", Assert.Throws<KernelImageException>(() => KernelImage.Open("/dev/zero")).Message, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "A kernel without a 64-bit entry is started in 32-bit mode")]
    public void ThirtyTwoBitKernel()
    {
        byte[] good = TestKernel.BzImage(Payload("gzip"));
        using KernelImage kernel = KernelFile.Open(good);
        Assert.Equal(BootProtocol.Linux64, kernel.Protocol);
        using KernelImage without = KernelFile.Open(good.With(0x236, 0, 0));
        Assert.Equal(BootProtocol.Linux32, without.Protocol);
    }

    [Fact(DisplayName = "A too old kernel and one for another machine are refused by name")]
    public void OtherKernels()
    {
        byte[] good = TestKernel.BzImage(Payload("gzip"));
        Assert.Contains("2.05", KernelFile.Refusal(good.With(0x206, 5, 2)), StringComparison.Ordinal);
        Assert.Contains("another machine", KernelFile.Refusal(TestKernel.Elf().With(4, [1])), StringComparison.Ordinal);
        Assert.Contains("another machine", KernelFile.Refusal(TestKernel.Elf().With(18, [183])), StringComparison.Ordinal);
    }

    [Theory(DisplayName = "A bzImage that is cut off anywhere is refused")]
    [MemberData(nameof(Formats))]
    public void Truncated(string format)
    {
        byte[] good = TestKernel.BzImage(Payload(format));
        int end = good.Length - 17;
        for (int length = end; length > 0; length -= 1 + (length / 37))
        {
            KernelFile.Refusal(good[..length]);
        }
    }

    [Fact(DisplayName = "A payload that claims more than 512 MiB, or unpacks to something else than it claims, is refused")]
    public void Bombs()
    {
        foreach (string format in new[] { "zstd", "lz4", "xz", "lzma", "gzip" })
        {
            byte[] payload = Payload(format);
            int size = payload.Length - 4;
            Assert.Contains("at most 512 MiB", KernelFile.Refusal(TestKernel.BzImage(payload.With(size, 0xFF, 0xFF, 0xFF, 0xFF))), StringComparison.Ordinal);
            KernelFile.Refusal(TestKernel.BzImage(payload.With(size, 0, 0, 0, 0x1F)));
            KernelFile.Refusal(TestKernel.BzImage(payload.With(size, 1, 0, 0, 0)));
        }
    }

    [Fact(DisplayName = "An xz header that asks for a huge dictionary is refused before anybody allocates it")]
    public void XzDictionary()
    {
        // stream header 12; block header: size, flags, x86 filter (id, 0), LZMA2 filter (id, 1, dictionary)
        const int dictionary = 12 + 2 + 2 + 2;
        byte[] payload = TestKernel.Xz();
        Assert.Equal(0x21, payload[dictionary - 2]);
        Assert.Contains("dictionary", KernelFile.Refusal(TestKernel.BzImage(payload.With(dictionary, [40]))), StringComparison.Ordinal);
    }

    [Fact(DisplayName = "Segments that are outside the file, overlap, wrap around or are missing are refused")]
    public void Segments()
    {
        const int first = 64;
        const int second = 64 + 56;
        byte[] elf = TestKernel.Elf();
        foreach (ulong value in new ulong[] { 0x30F0, int.MaxValue, uint.MaxValue, long.MaxValue, ulong.MaxValue, ulong.MaxValue - 0x1FFF })
        {
            Assert.Contains("truncated", KernelFile.Refusal(elf.With(first + 8, value)), StringComparison.Ordinal);
            KernelFile.Refusal(elf.With(first + 32, value));
            Assert.Contains("truncated", KernelFile.Refusal(elf.With(32, value)), StringComparison.Ordinal);
        }

        Assert.Contains("impossible", KernelFile.Refusal(elf.With(second + 24, ulong.MaxValue - 0xFFF)), StringComparison.Ordinal);
        Assert.Contains("overlap", KernelFile.Refusal(elf.With(second + 24, TestKernel.Start + 0x1FFF)), StringComparison.Ordinal);
        Assert.Contains("entry", KernelFile.Refusal(elf.With(24, 0x42UL)), StringComparison.Ordinal);
        Assert.Contains("0 segments", KernelFile.Refusal(elf.With(first, [0]).With(second, [0])), StringComparison.Ordinal);
        Assert.Contains("no program headers", KernelFile.Refusal(elf.With(56, [0])), StringComparison.Ordinal);
    }

    [Fact(DisplayName = "A note that makes no sense means no build id, not a refusal")]
    public void BrokenNote()
    {
        using KernelImage kernel = KernelFile.Open(TestKernel.Elf().With(0x200, 0xFF, 0xFF, 0xFF, 0xFF));
        Assert.Null(kernel.BuildId);
    }

    internal static byte[] Payload(string format) => format switch
    {
        "gzip" => TestKernel.Gzip(TestKernel.Elf()),
        "zstd" => TestKernel.Zstd(TestKernel.Elf()),
        "lz4" => TestKernel.Lz4(TestKernel.Elf()),
        "xz" => TestKernel.Xz(),
        "lzma" => TestKernel.Lzma(),
        _ => TestKernel.Elf(),
    };
}
