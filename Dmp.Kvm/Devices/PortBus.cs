using Dmp.Kvm.Locking;

namespace Dmp.Kvm.Devices;

/// <summary>Accesses to a port that no device owns.</summary>
/// <param name="Port">The port.</param>
/// <param name="Reads">Reads, answered with all ones.</param>
/// <param name="Writes">Writes, dropped.</param>
public readonly record struct UnownedPort(ushort Port, uint Reads, uint Writes);

/// <summary>
/// The I/O port space. Devices are registered before the first vCPU runs; after that the map never changes, so that any thread
/// looks up without a lock and without allocating. Each call into a device is made under that device's lock.
/// </summary>
public sealed class PortBus
{
    private const int PortCount = 1 << 16;
    private const int BitsPerByte = 8;
    private const byte Unowned = 0;

    private readonly byte[] owners = new byte[PortCount];
    private readonly uint[] unownedReads = new uint[PortCount];
    private readonly uint[] unownedWrites = new uint[PortCount];
    private Slot[] slots = [];

    /// <summary>Gives a range of ports to a device. Only before the first access.</summary>
    /// <param name="first">First port.</param>
    /// <param name="last">Last port, inclusive.</param>
    /// <param name="device">The device; the same one may own several ranges and keeps one lock.</param>
    /// <param name="widest">Widest access in bytes that the device understands; wider ones reach it byte by byte, as on ISA.</param>
    /// <exception cref="ArgumentException">A port in the range has an owner already.</exception>
    public void Register(ushort first, ushort last, IPortDevice device, int widest = 1)
    {
        ArgumentNullException.ThrowIfNull(device);
        ArgumentOutOfRangeException.ThrowIfLessThan(last, first);
        ArgumentOutOfRangeException.ThrowIfEqual(slots.Length, byte.MaxValue, nameof(device));
        for (int port = first; port <= last; port++)
        {
            if (owners[port] != Unowned)
            {
                throw new ArgumentException(
                    $"Port 0x{port:x} cannot be given to {device.GetType().Name}: " +
                    $"it belongs to {slots[owners[port] - 1].Device.GetType().Name}. Choose another port.",
                    nameof(first));
            }
        }

        slots = [.. slots, new Slot(last, device, GateOf(device), widest)];
        owners.AsSpan(first, last - first + 1).Fill((byte)slots.Length);
    }

    /// <summary>Reads from a port. Any thread.</summary>
    /// <param name="port">The port.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <returns>The value, zero-extended; all ones of the size where nobody answers.</returns>
    public uint Read(ushort port, int size)
    {
        byte owner = owners[port];
        if (owner != Unowned)
        {
            Slot slot = slots[owner - 1];
            if (slot.Takes(port, size))
            {
                using (slot.Gate.Enter())
                {
                    return slot.Device.Read(port, size) & OnesOf(size);
                }
            }
        }
        else if (NobodyOwns(port, size))
        {
            Interlocked.Increment(ref unownedReads[port]);
            return OnesOf(size);
        }

        uint value = 0;
        for (int i = 0; i < size; i++)
        {
            value |= Read((ushort)(port + i), 1) << (i * BitsPerByte);
        }

        return value;
    }

    /// <summary>Writes to a port. Any thread.</summary>
    /// <param name="port">The port.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <param name="value">The value, zero-extended.</param>
    public void Write(ushort port, int size, uint value)
    {
        byte owner = owners[port];
        if (owner != Unowned)
        {
            Slot slot = slots[owner - 1];
            if (slot.Takes(port, size))
            {
                using (slot.Gate.Enter())
                {
                    slot.Device.Write(port, size, value);
                }

                return;
            }
        }
        else if (NobodyOwns(port, size))
        {
            Interlocked.Increment(ref unownedWrites[port]);
            return;
        }

        for (int i = 0; i < size; i++)
        {
            Write((ushort)(port + i), 1, (byte)(value >> (i * BitsPerByte)));
        }
    }

    /// <summary>Copies the counts of all unowned ports that were touched, in order of port. Any thread.</summary>
    /// <param name="destination">Receives the counts; cleared first.</param>
    public void SnapshotUnowned(List<UnownedPort> destination)
    {
        ArgumentNullException.ThrowIfNull(destination);
        destination.Clear();
        for (int port = 0; port < PortCount; port++)
        {
            uint reads = Volatile.Read(ref unownedReads[port]);
            uint writes = Volatile.Read(ref unownedWrites[port]);
            if ((reads | writes) != 0)
            {
                destination.Add(new UnownedPort((ushort)port, reads, writes));
            }
        }
    }

    private static uint OnesOf(int size) => uint.MaxValue >> ((sizeof(uint) - size) * BitsPerByte);

    private bool NobodyOwns(ushort port, int size)
    {
        for (int i = 0; i < size; i++)
        {
            if (owners[(ushort)(port + i)] != Unowned)
            {
                return false;
            }
        }

        return true;
    }

    private OrderedLock GateOf(IPortDevice device)
    {
        if (device is ISharedDevice shared)
        {
            return shared.Gate;
        }

        return Array.Find(slots, slot => ReferenceEquals(slot.Device, device))?.Gate ?? new OrderedLock(LockRank.Device);
    }

    private sealed record Slot(ushort Last, IPortDevice Device, OrderedLock Gate, int Widest)
    {
        public bool Takes(ushort port, int size) => size <= Widest && port + size - 1 <= Last;
    }
}
