namespace Dmp.Kvm.Devices;

/// <summary>
/// PCI configuration mechanism #1 without a PCI bus: everything reads as all ones, the address register too, so that a probe ends
/// at its first read instead of looking for devices. A byte access to 0xCF9 is not part of the address register but
/// <see cref="ResetControl"/>.
/// </summary>
public sealed class PciConfigPorts : IPortDevice
{
    /// <summary>Number of ports.</summary>
    public const int PortCount = 8;

    private readonly ResetControl reset;

    /// <summary>Makes the ports.</summary>
    /// <param name="reset">The register in their middle.</param>
    public PciConfigPorts(ResetControl reset) => this.reset = reset;

    /// <inheritdoc/>
    public uint Read(ushort port, int size) =>
        IsReset(port, size) ? reset.Read(port, size) : uint.MaxValue;

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        if (IsReset(port, size))
        {
            reset.Write(port, size, value);
        }
    }

    private static bool IsReset(ushort port, int size) => port == DeviceLayout.ResetControl && size == 1;
}
