namespace Dmp.Kvm.Devices;

/// <summary>
/// ACPI power management (ACPI specification 6.5, 4.8.3): PM1a event and control blocks and the 32-bit PM timer. No event ever
/// happens, so the SCI stays silent; the machine is always in ACPI mode; the only sleeping state is soft-off.
/// </summary>
public sealed class AcpiPm : IPortDevice
{
    /// <summary>SLP_TYP of soft-off (S5), as the DSDT's \_S5 names it.</summary>
    public const int SoftOffType = 5;

    /// <summary>Ports of the event and control blocks together.</summary>
    public const int BlockPorts = 6;

    /// <summary>Ports of the timer.</summary>
    public const int TimerPorts = 4;

    private const long TimerFrequency = 3_579_545;
    private const long NanosecondsPerSecond = 1_000_000_000;
    private const int BitsPerByte = 8;
    private const int SleepTypeShift = 10;

    private readonly IClock clock;
    private readonly IMachineControl control;
    private ushort enable;
    private Pm1Control pm1Control;

    /// <summary>Makes the device.</summary>
    /// <param name="clock">The time.</param>
    /// <param name="control">Told when the guest switches the power off.</param>
    public AcpiPm(IClock clock, IMachineControl control)
    {
        this.clock = clock;
        this.control = control;
    }

    private enum Register
    {
        Status = DeviceLayout.Pm1aEvent,
        Enable = DeviceLayout.Pm1aEvent + 2,
        Control = DeviceLayout.Pm1aControl,
    }

    [Flags]
    private enum Pm1Control : ushort
    {
        None = 0,

        /// <summary>SCI_EN: ACPI mode. There is no other, so it is always set.</summary>
        SciEnable = 1 << 0,

        /// <summary>SLP_TYP.</summary>
        SleepType = 7 << SleepTypeShift,

        /// <summary>SLP_EN; reads as zero.</summary>
        SleepEnable = 1 << 13,
    }

    /// <inheritdoc/>
    public uint Read(ushort port, int size)
    {
        if (port >= DeviceLayout.PmTimer)
        {
            uint timer = (uint)((Int128)clock.Nanoseconds * TimerFrequency / NanosecondsPerSecond);
            return timer >> ((port - DeviceLayout.PmTimer) * BitsPerByte);
        }

        return (uint)(ReadWord((Register)(port & ~1)) >> ((port & 1) * BitsPerByte));
    }

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        Register register = (Register)(port & ~1);
        if (port >= DeviceLayout.PmTimer || register == Register.Status)
        {
            return; // The timer is read-only; status bits are cleared by writing, and none is ever set.
        }

        ushort word = (ushort)value;
        if (size == 1)
        {
            int shift = (port & 1) * BitsPerByte;
            word = (ushort)((ReadWord(register) & ~(byte.MaxValue << shift)) | ((byte)value << shift));
        }

        if (register == Register.Enable)
        {
            enable = word;
        }
        else
        {
            WriteControl((Pm1Control)word);
        }
    }

    private ushort ReadWord(Register register) => register switch
    {
        Register.Enable => enable,
        Register.Control => (ushort)(pm1Control | Pm1Control.SciEnable),
        _ => 0,
    };

    private void WriteControl(Pm1Control value)
    {
        pm1Control = value & ~Pm1Control.SleepEnable;
        int sleepType = (int)(value & Pm1Control.SleepType) >> SleepTypeShift;
        if ((value & Pm1Control.SleepEnable) != 0 && sleepType == SoftOffType)
        {
            control.PowerOff();
        }
    }
}
