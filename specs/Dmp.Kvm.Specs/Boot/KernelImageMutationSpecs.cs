using Dmp.Kvm.Boot;
using FsCheck;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Boot;

/// <summary>Whatever the bytes are: a kernel that loads, or a refusal in one line. Never anything else, never slow.</summary>
public class KernelImageMutationSpecs
{
    [Theory(DisplayName = "1,000 mutations of a bzImage are loaded or refused, nothing else")]
    [InlineData("gzip")]
    [InlineData("zstd")]
    [InlineData("lz4")]
    [InlineData("xz")]
    [InlineData("none")]
    public void Mutations(string format)
    {
        byte[] good = TestKernel.BzImage(KernelImageSpecs.Payload(format));
        var random = new Random(1);
        using var file = new KernelFile(good);
        for (int round = 0; round < 1000; round++)
        {
            byte[] mutated = [.. good];
            for (int change = random.Next(1, 8); change > 0; change--)
            {
                // Half of the changes hit the header, where they hurt most.
                int at = random.Next(2) == 0 ? random.Next(0x1F1, 0x268) : random.Next(good.Length);
                mutated[at] = (byte)random.Next(256);
            }

            File.WriteAllBytes(file.Path, mutated);
            TryToLoad(file.Path);
        }
    }

    [Fact(DisplayName = "1,000 mutations of ELF headers are loaded or refused, nothing else")]
    public void ElfMutations()
    {
        byte[] good = TestKernel.Elf();
        var random = new Random(2);
        using var file = new KernelFile(good);
        for (int round = 0; round < 1000; round++)
        {
            byte[] mutated = [.. good];
            for (int change = random.Next(1, 6); change > 0; change--)
            {
                mutated[random.Next(4, 0x240)] = (byte)random.Next(256);
            }

            File.WriteAllBytes(file.Path, mutated);
            TryToLoad(file.Path);
        }
    }

    [Property(DisplayName = "Random bytes are refused", MaxTest = 300)]
    public void RandomBytes(byte[] bytes) => KernelFile.Refusal(bytes);

    [Property(DisplayName = "Random bytes behind each magic are loaded or refused, nothing else", MaxTest = 300)]
    public void RandomPayload(PositiveInt format, byte[] bytes)
    {
        byte[][] magics =
        [
            [0x1F, 0x8B, 8], [0x28, 0xB5, 0x2F, 0xFD], [0x02, 0x21, 0x4C, 0x18], [0xFD, 0x37, 0x7A, 0x58, 0x5A, 0], [0x5D, 0, 0],
            [0x7F, (byte)'E', (byte)'L', (byte)'F', 2, 1],
        ];
        KernelFile.Refusal(TestKernel.BzImage([.. magics[format.Get % magics.Length], .. bytes, 0, 0x10, 0, 0]));
    }

    private static void TryToLoad(string path)
    {
        try
        {
            using KernelImage kernel = KernelImage.Open(path);
            _ = KernelLoader.Load(SharedRam, kernel, new BootRequest());
            _ = KernelLoader.Load(SharedRam, kernel, new BootRequest { Use32BitEntry = kernel.IsPacked });
        }
        catch (BootException refusal)
        {
            Assert.DoesNotContain('\n', refusal.Message);
        }
    }

    private static readonly ArrayRam SharedRam = new(32);
}
