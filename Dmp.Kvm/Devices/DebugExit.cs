namespace Dmp.Kvm.Devices;

/// <summary>Ends the machine with a value the guest chooses, as QEMU's isa-debug-exit does.</summary>
public sealed class DebugExit : IPortDevice
{
    /// <summary>Number of ports, so that a 4-byte write arrives whole.</summary>
    public const int PortCount = 4;

    private readonly IMachineControl control;

    /// <summary>Makes the device.</summary>
    /// <param name="control">Told of the write.</param>
    public DebugExit(IMachineControl control) => this.control = control;

    /// <inheritdoc/>
    public uint Read(ushort port, int size) => 0;

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value) => control.DebugExit(value);
}
