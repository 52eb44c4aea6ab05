namespace Dmp.Kvm.Boot;

/// <summary>A file is not a kernel that can be started. The message names the file, what is wrong with it, and what to do.</summary>
public sealed class KernelImageException : BootException
{
    internal KernelImageException(string path, string problem, Exception? innerException = null)
        : base($"{path}: {problem}", innerException)
    {
        Path = path;
    }

    /// <summary>The file, as it was given.</summary>
    public string Path { get; }
}
