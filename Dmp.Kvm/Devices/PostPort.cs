namespace Dmp.Kvm.Devices;

/// <summary>A port that guests write to in order to pass about a microsecond. An exit takes longer, so nothing is left to do.</summary>
public sealed class PostPort : IPortDevice
{
    /// <inheritdoc/>
    public uint Read(ushort port, int size) => byte.MaxValue;

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
    }
}
