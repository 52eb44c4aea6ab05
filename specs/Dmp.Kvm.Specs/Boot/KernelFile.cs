using Dmp.Kvm.Boot;

namespace Dmp.Kvm.Specs.Boot;

/// <summary>A kernel in a temporary file.</summary>
internal sealed class KernelFile : IDisposable
{
    public KernelFile(byte[] content)
    {
        Path = System.IO.Path.GetTempFileName();
        File.WriteAllBytes(Path, content);
    }

    public string Path { get; }

    public static KernelImage Open(byte[] content)
    {
        using var file = new KernelFile(content);
        return KernelImage.Open(file.Path);
    }

    /// <summary>Opens a file that must be refused, in one line that names it.</summary>
    public static string Refusal(byte[] content)
    {
        using var file = new KernelFile(content);
        var refusal = Assert.Throws<KernelImageException>(() => KernelImage.Open(file.Path).Dispose());
        Assert.StartsWith(file.Path + ": ", refusal.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', refusal.Message);
        return refusal.Message;
    }

    public void Dispose() => File.Delete(Path);
}
