namespace Dmp.Actors.Console;

/// <summary>Where the guest's console output goes.</summary>
public interface IConsoleSink
{
    /// <summary>
    /// Takes the next bytes. Must not block (queue what cannot be written at once). When it throws it has taken none of them,
    /// and they are offered again.
    /// </summary>
    /// <param name="bytes">What the guest wrote; never changes afterwards.</param>
    void Write(ReadOnlyMemory<byte> bytes);
}
