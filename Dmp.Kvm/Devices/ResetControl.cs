namespace Dmp.Kvm.Devices;

/// <summary>The reset control register at port 0xCF9 (82371AB, 4.1.13), which is also the ACPI reset register. Byte-wide.</summary>
public sealed class ResetControl : IPortDevice
{
    private readonly IMachineControl control;
    private Register register;

    /// <summary>Makes the register.</summary>
    /// <param name="control">Told of a reset.</param>
    public ResetControl(IMachineControl control) => this.control = control;

    [Flags]
    private enum Register : byte
    {
        None = 0,
        SystemReset = 1 << 1,

        /// <summary>Its rise resets.</summary>
        ResetCpu = 1 << 2,
        Writable = SystemReset | ResetCpu,
    }

    /// <inheritdoc/>
    public uint Read(ushort port, int size) => (uint)register;

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        Register previous = register;
        register = (Register)value & Register.Writable;
        if ((register & ~previous & Register.ResetCpu) != 0)
        {
            control.Reset("port 0xcf9");
        }
    }
}
