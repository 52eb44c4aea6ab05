using Dmp.Kvm.Devices;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.Devices;

/// <summary>A vCPU that runs the implants of port instructions, one step on the devices' page at a time.</summary>
internal sealed class RingProducer(DevicePage page)
{
    private ulong position;

    /// <summary>The first step.</summary>
    public void ReadTail() => position = Volatile.Read(ref page[DevicePageField.Tail]);

    /// <summary>The second step.</summary>
    /// <returns>Whether the byte is in the ring; if not, the implant leaves it to the device.</returns>
    public bool Exchange(byte value) => Interlocked.CompareExchange(
        ref page[DevicePage.Entry(position)], position | DevicePage.EntryFull | value, position) == position;

    /// <summary>The third step.</summary>
    public void WriteTail() => Volatile.Write(ref page[DevicePageField.Tail], position + DevicePage.PositionStep);

    /// <summary>All of OUT.</summary>
    public bool TryOut(ushort port, byte value)
    {
        if (page[DevicePageField.TransmitPort] != port)
        {
            return false;
        }

        ReadTail();
        if (!Exchange(value))
        {
            return false;
        }

        WriteTail();
        return true;
    }

    /// <summary>All of IN.</summary>
    public bool TryIn(ushort port, out byte value)
    {
        ulong register = port - page[DevicePageField.RegisterBase];
        ulong content = register < DevicePage.RegisterCount ? page[DevicePageField.Registers + (int)register] : 0;
        value = (byte)content;
        return (content & DevicePage.RegisterReadable) != 0;
    }
}
