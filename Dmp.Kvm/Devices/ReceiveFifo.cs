namespace Dmp.Kvm.Devices;

/// <summary>The 16550A's receiver: 16 characters with the FIFO on, one with it off. Under the UART's lock.</summary>
internal sealed class ReceiveFifo
{
    private const int Capacity = 16;

    // Trigger levels that FCR bits 6 and 7 select.
    private static ReadOnlySpan<byte> TriggerLevels => [1, 4, 8, 14];

    private const int TriggerShift = 6;

    private readonly byte[] bytes = new byte[Capacity];
    private int head;
    private int trigger = 1;

    /// <summary>Whether FCR enabled the FIFOs.</summary>
    public bool Enabled { get; private set; }

    /// <summary>Characters waiting.</summary>
    public int Count { get; private set; }

    /// <summary>Whether another character would overrun.</summary>
    public bool IsFull => Count == (Enabled ? Capacity : 1);

    /// <summary>Whether so many wait that the guest is to be told without a timeout.</summary>
    public bool ReachedTrigger => Count >= (Enabled ? trigger : 1);

    /// <summary>Applies a write to FCR; a change of the enable bit empties the FIFO, as the data sheet says.</summary>
    public void Control(byte value)
    {
        bool enable = ((Fcr)value & Fcr.Enable) != 0;
        if (enable != Enabled || (enable && ((Fcr)value & Fcr.ReceiverReset) != 0))
        {
            Count = 0;
        }

        Enabled = enable;
        if (enable)
        {
            trigger = TriggerLevels[value >> TriggerShift];
        }
    }

    /// <summary>Adds a character; the caller has looked at <see cref="IsFull"/>.</summary>
    public void Put(byte value) => bytes[(head + Count++) % Capacity] = value;

    /// <summary>Takes the oldest character, or 0 when there is none.</summary>
    public byte Take()
    {
        if (Count == 0)
        {
            return 0;
        }

        byte value = bytes[head];
        head = (head + 1) % Capacity;
        Count--;
        return value;
    }
}
