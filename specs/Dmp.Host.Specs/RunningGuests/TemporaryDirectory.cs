namespace Dmp.Host.Specs.RunningGuests;

/// <summary>A directory that goes away with everything in it.</summary>
internal sealed class TemporaryDirectory : IDisposable
{
    public string Path { get; } = Directory.CreateTempSubdirectory("dmp-specs-").FullName;

    public void Dispose() => Directory.Delete(Path, recursive: true);
}
