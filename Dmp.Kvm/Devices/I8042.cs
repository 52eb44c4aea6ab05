namespace Dmp.Kvm.Devices;

/// <summary>
/// What is left of the 8042 keyboard controller: the reset line. There is no keyboard, and a driver should notice that at once.
/// <para>
/// The status reads as a floating bus but for "input buffer full". So a probe finds an output buffer that never empties and gives up
/// after a few reads (Linux: sixteen, no timeout), while code that waits for the input buffer before it asks for a reset (Linux's
/// reboot polls up to 65536 times) does not wait at all.
/// </para>
/// </summary>
public sealed class I8042 : IPortDevice
{
    private const byte PulseCommands = 0xF0;
    private const byte FloatingBus = 0xFF;

    private readonly IMachineControl control;
    private bool expectsOutputPort;

    /// <summary>Makes the controller.</summary>
    /// <param name="control">Told of a reset.</param>
    public I8042(IMachineControl control) => this.control = control;

    private enum Command : byte
    {
        WriteOutputPort = 0xD1,
    }

    [Flags]
    private enum Status : byte
    {
        InputBufferFull = 1 << 1,
    }

    [Flags]
    private enum OutputPort : byte
    {
        /// <summary>P20, low active; also bit 0 of the pulse commands.</summary>
        NoReset = 1 << 0,
    }

    /// <inheritdoc/>
    public uint Read(ushort port, int size) =>
        port == DeviceLayout.KeyboardCommand ? FloatingBus & ~(uint)Status.InputBufferFull : FloatingBus;

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        if (port == DeviceLayout.KeyboardCommand)
        {
            expectsOutputPort = value == (uint)Command.WriteOutputPort;
            if (value >= PulseCommands)
            {
                ResetUnless((OutputPort)value, "i8042 pulse");
            }
        }
        else if (expectsOutputPort)
        {
            expectsOutputPort = false;
            ResetUnless((OutputPort)value, "i8042 output port");
        }
    }

    private void ResetUnless(OutputPort outputs, string how)
    {
        if ((outputs & OutputPort.NoReset) == 0)
        {
            control.Reset(how);
        }
    }
}
