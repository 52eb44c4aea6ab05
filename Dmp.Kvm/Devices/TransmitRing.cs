using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Devices;

/// <summary>
/// The device's end of the ring in a <see cref="DevicePage"/>. Implants on any number of vCPUs fill it, without locks:
/// <list type="number">
/// <item>read <see cref="DevicePageField.Tail"/>;</item>
/// <item>
/// exchange the entry of that position from "empty, for this position" to "full, with the byte". Whoever does not succeed goes to the
/// device instead: the ring is full, or another vCPU was quicker;
/// </item>
/// <item>write the next position to the tail. Until then nobody else can fill an entry.</item>
/// </list>
/// </summary>
/// <remarks>
/// The bytes of a vCPU leave in the order in which it wrote them, and between a byte in the ring and a later one at the device the device
/// takes the former first. Entries are filled without gaps, and nothing here waits for a producer: one that is stopped between two steps
/// has either written its byte or not. <see cref="TryTake"/> belongs to whoever holds the device's lock; <see cref="HasBytes"/> to anyone.
/// </remarks>
internal sealed class TransmitRing(DevicePage page)
{
    private const ulong ByteMask = byte.MaxValue;

    // Position of the next byte to take. Written under the device's lock.
    private ulong head = DevicePage.FirstPosition;

    /// <summary>Whether there was a byte to take a moment ago.</summary>
    internal bool HasBytes
    {
        get
        {
            ulong position = Volatile.Read(ref head);
            return IsFull(Volatile.Read(ref page[DevicePage.Entry(position)]), position);
        }
    }

    /// <summary>Takes the oldest byte.</summary>
    /// <returns>Whether there was one.</returns>
    internal bool TryTake(out byte value)
    {
        const ulong Lap = DevicePage.RingEntries * DevicePage.PositionStep;
        ref ulong entry = ref page[DevicePage.Entry(head)];
        ulong content = Volatile.Read(ref entry);
        value = (byte)content;
        if (!IsFull(content, head))
        {
            return false;
        }

        Volatile.Write(ref entry, head + Lap);
        Volatile.Write(ref head, head + DevicePage.PositionStep);
        return true;
    }

    private static bool IsFull(ulong entry, ulong position) => (entry & ~ByteMask) == (position | DevicePage.EntryFull);
}
