using Dmp.Kvm.Locking;

namespace Dmp.Kvm.Devices;

/// <summary>
/// The PC's pair of 8259A interrupt controllers (Intel 8259A data sheet) with their edge/level control registers (82371AB, 4.2.5).
/// Its INTR output goes to the local APICs' LINT0.
/// </summary>
public sealed class Pic8259 : IPortDevice, ISharedDevice
{
    private const int CascadeInput = 2;
    private const int InputsPerChip = 8;

    // The timer, the keyboard, the cascade, and on the slave the RTC and the FPU are edge-triggered on every board.
    private const byte MasterEdgeOnly = 0b0000_0111;
    private const byte SlaveEdgeOnly = 0b0010_0001;

    private readonly Pic8259Chip master = new(cascadeInputs: 1 << CascadeInput, edgeOnlyInputs: MasterEdgeOnly);
    private readonly Pic8259Chip slave = new(cascadeInputs: 0, edgeOnlyInputs: SlaveEdgeOnly);
    private readonly Action raised;
    private volatile bool output;

    /// <summary>Makes the pair.</summary>
    /// <param name="raised">Called when the INTR output rises, under <see cref="Gate"/>: tells whoever takes it to look.</param>
    public Pic8259(Action raised) => this.raised = raised;

    /// <inheritdoc/>
    public OrderedLock Gate { get; } = new(LockRank.InterruptController);

    /// <summary>
    /// The INTR output: whether <see cref="Acknowledge"/> would return a vector that is not spurious. Any thread; written under
    /// <see cref="Gate"/> with release order after the state it summarizes.
    /// </summary>
    public bool Output => output;

    /// <summary>Drives an interrupt line. Any thread.</summary>
    /// <param name="irq">0 to 15; 2 is the cascade and ignored.</param>
    /// <param name="level">Whether the device asserts it.</param>
    public void SetIrq(int irq, bool level)
    {
        if (irq == CascadeInput)
        {
            return;
        }

        using (Gate.Enter())
        {
            (irq < InputsPerChip ? master : slave).SetLine(irq % InputsPerChip, level);
            Update();
        }
    }

    /// <summary>The CPU's interrupt acknowledge cycle.</summary>
    /// <returns>The vector, possibly the spurious one (input 7 of either chip).</returns>
    public byte Acknowledge()
    {
        using (Gate.Enter())
        {
            byte vector = AcknowledgeUnderLock();
            Update();
            return vector;
        }
    }

    /// <inheritdoc/>
    public uint Read(ushort port, int size)
    {
        byte value = port switch
        {
            DeviceLayout.MasterPic => master.ReadCommand(),
            DeviceLayout.MasterPic + 1 => master.ReadData(),
            DeviceLayout.SlavePic => slave.ReadCommand(),
            DeviceLayout.SlavePic + 1 => slave.ReadData(),
            DeviceLayout.EdgeLevelControl => master.EdgeLevelControl,
            _ => slave.EdgeLevelControl,
        };
        Update(); // A read in poll mode acknowledges.
        return value;
    }

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        byte data = (byte)value;
        switch (port)
        {
            case DeviceLayout.MasterPic:
                master.WriteCommand(data);
                break;
            case DeviceLayout.MasterPic + 1:
                master.WriteData(data);
                break;
            case DeviceLayout.SlavePic:
                slave.WriteCommand(data);
                break;
            case DeviceLayout.SlavePic + 1:
                slave.WriteData(data);
                break;
            case DeviceLayout.EdgeLevelControl:
                master.EdgeLevelControl = data;
                break;
            default:
                slave.EdgeLevelControl = data;
                break;
        }

        Update();
    }

    private byte AcknowledgeUnderLock()
    {
        int input = master.Acknowledge();
        if (input != CascadeInput)
        {
            return master.Vector(input);
        }

        // The slave's output falls with the acknowledge cycle; the next request is a new edge for the master.
        byte vector = slave.Vector(slave.Acknowledge());
        master.SetLine(CascadeInput, false);
        return vector;
    }

    private void Update()
    {
        master.SetLine(CascadeInput, slave.Pending() != Pic8259Chip.None);
        bool level = master.Pending() != Pic8259Chip.None;
        bool rises = level && !output;
        output = level;
        if (rises)
        {
            raised();
        }
    }
}
