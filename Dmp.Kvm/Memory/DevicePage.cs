using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Memory;

/// <summary>
/// The page through which devices serve implants without an exit (virtual address <see cref="MachineLayout.DevicePageAddress"/>, kernel
/// views only): registers whose reading has no side effect, and a ring of transmitted bytes. One for the machine.
/// </summary>
/// <remarks>
/// Implants on every vCPU and the device, under its lock, use it at the same time: each field is one word that means something by itself.
/// The guest's kernel can write anything here, to its own harm alone: whoever reads bounds what it reads.
/// </remarks>
internal sealed class DevicePage
{
    /// <summary>Registers a device can offer.</summary>
    internal const int RegisterCount = 8;

    /// <summary>A bit of <see cref="DevicePageField.Registers"/>: the low byte may be read.</summary>
    internal const ulong RegisterReadable = 1 << 8;

    /// <summary>
    /// Entries in the ring. An entry is the position in the stream of bytes, above <see cref="PositionShift"/>, with
    /// <see cref="EntryFull"/> and the byte when it holds one; an empty entry has the position of the byte it waits for. So one
    /// compare-exchange decides whose byte comes next, and an old position never fits again.
    /// </summary>
    internal const int RingEntries = 256;

    /// <summary>Bits of an entry below the position.</summary>
    internal const int PositionShift = 9;

    /// <summary>One position.</summary>
    internal const ulong PositionStep = 1UL << PositionShift;

    /// <summary>A bit of an entry: it holds a byte.</summary>
    internal const ulong EntryFull = 1 << 8;

    /// <summary>The first position. Its upper half is not 0, so code that loses that half is found out at once and not after 8 MiB.</summary>
    internal const ulong FirstPosition = 1UL << 32;

    /// <summary>For <see cref="DevicePageField.TransmitPort"/> and <see cref="DevicePageField.RegisterBase"/>: no port at all.</summary>
    internal const ulong NoPort = 1UL << 31;

    private readonly MappedMemory? region;
    private readonly ulong[] own = [];

    /// <summary>The page in the monitor region.</summary>
    internal DevicePage(MappedMemory region)
    {
        this.region = region;
        Clear();
    }

    /// <summary>A page of its own that no implant sees.</summary>
    internal DevicePage()
    {
        own = new ulong[(int)DevicePageField.Count];
        Clear();
    }

    /// <summary>Address of a field, for implants.</summary>
    internal static ulong Address(DevicePageField field) => MachineLayout.DevicePageAddress + ((ulong)field * sizeof(ulong));

    /// <summary>The entry of a position, as an index behind <see cref="DevicePageField.Ring"/>.</summary>
    internal static DevicePageField Entry(ulong position) =>
        DevicePageField.Ring + (int)((position >> PositionShift) % RingEntries);

    /// <summary>A field.</summary>
    internal ref ulong this[DevicePageField field] => ref region is null
        ? ref own[(int)field]
        : ref region.Word(MachineLayout.DevicePageOffset + ((ulong)field * sizeof(ulong)));

    private void Clear()
    {
        this[DevicePageField.TransmitPort] = NoPort;
        this[DevicePageField.RegisterBase] = NoPort;
        this[DevicePageField.Tail] = FirstPosition;
        for (int entry = 0; entry < RingEntries; entry++)
        {
            this[DevicePageField.Ring + entry] = FirstPosition + ((ulong)entry * PositionStep);
        }
    }
}

/// <summary>The fields of a <see cref="DevicePage"/>, 8 bytes each.</summary>
internal enum DevicePageField
{
    /// <summary>
    /// The port whose bytes may go to the ring now, or <see cref="DevicePage.NoPort"/> when each needs the device's attention.
    /// </summary>
    TransmitPort,

    /// <summary>Port of the first of the <see cref="Registers"/>.</summary>
    RegisterBase,

    /// <summary>What reading each register yields, with <see cref="DevicePage.RegisterReadable"/>; 0 when reading it needs the device.</summary>
    Registers,

    /// <summary>Position of the next byte, for producers: the entry decides. Written by whoever filled the entry before.</summary>
    Tail = Registers + DevicePage.RegisterCount,

    /// <summary>The entries of the ring.</summary>
    Ring = 16,

    /// <summary>Number of fields.</summary>
    Count = Ring + DevicePage.RingEntries,
}
