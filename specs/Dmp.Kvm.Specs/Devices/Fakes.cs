using Dmp.Kvm.Devices;

namespace Dmp.Kvm.Specs.Devices;

/// <summary>A clock that moves only when told to. Its TSC runs at 2 GHz.</summary>
internal sealed class VirtualClock : IClock
{
    public long Nanoseconds { get; set; }

    public DateTimeOffset UtcNow { get; set; } = new(2024, 11, 29, 23, 58, 7, TimeSpan.Zero);

    public ulong Tsc => (ulong)Nanoseconds * 2;

    public ulong TscFrequency => 2_000_000_000;
}

/// <summary>Writes down what devices asked of the machine.</summary>
internal sealed class RecordingMachine : IMachineControl
{
    private int kicks;

    public int Kicks => Volatile.Read(ref kicks);

    public List<int> Kicked { get; } = [];

    public List<string> Events { get; } = [];

    public Dictionary<int, long> Arranged { get; } = [];

    public void PowerOff() => Events.Add("power off");

    public void Reset(string how) => Events.Add(how);

    public void DebugExit(uint value) => Events.Add($"debug exit {value}");

    public void Kick(int vcpu)
    {
        Interlocked.Increment(ref kicks);
        lock (Kicked)
        {
            Kicked.Add(vcpu);
        }
    }

    public int Arrangements { get; set; }

    public void KickAt(int vcpu, long nanoseconds)
    {
        Arranged[vcpu] = nanoseconds;
        Arrangements++;
    }
}

/// <summary>A device of plain bytes that writes down its accesses.</summary>
internal sealed class RecordingDevice : IPortDevice, IMmioDevice
{
    public List<string> Accesses { get; } = [];

    public uint Value { get; set; }

    public uint Read(ushort port, int size)
    {
        Accesses.Add($"r{size} {port:x}");
        return Value;
    }

    public void Write(ushort port, int size, uint value) => Accesses.Add($"w{size} {port:x} {value:x}");

    public ulong Read(ulong offset, int size)
    {
        Accesses.Add($"r{size} {offset:x}");
        return Value;
    }

    public void Write(ulong offset, int size, ulong value) => Accesses.Add($"w{size} {offset:x} {value:x}");
}

/// <summary>A whole set of devices on a virtual clock.</summary>
internal sealed class Board
{
    public Board(int vcpus = 1, ushort? debugExitPort = null)
    {
        Chipset = new Chipset(vcpus, Clock, Machine, Console, 512UL << 20, debugExitPort);
        Machine.Arranged.Clear();
    }

    public VirtualClock Clock { get; } = new();

    public RecordingMachine Machine { get; } = new();

    public SerialConsole Console { get; } = new();

    public Chipset Chipset { get; }

    public byte In(ushort port) => (byte)Chipset.Ports.Read(port, 1);

    public void Out(ushort port, byte value) => Chipset.Ports.Write(port, 1, value);

    /// <summary>Moves the clock and does what the vCPU does when it is kicked.</summary>
    public void RunTo(long nanoseconds, int vcpu = 0)
    {
        Clock.Nanoseconds = nanoseconds;
        Chipset.RunDue(vcpu, nanoseconds);
    }

    public void WriteMsr(uint msr, ulong value, int vcpu = 0) =>
        Assert.True(Chipset.LocalApics[vcpu].TryWriteMsr(msr, value), $"#GP writing 0x{msr:x}");

    public ulong ReadMsr(uint msr, int vcpu = 0)
    {
        Assert.True(Chipset.LocalApics[vcpu].TryReadMsr(msr, out ulong value), $"#GP reading 0x{msr:x}");
        return value;
    }

    /// <summary>Writes both halves of an I/O APIC redirection entry, the low one last.</summary>
    public void Redirect(int pin, ulong entry)
    {
        foreach (int half in (ReadOnlySpan<int>)[1, 0])
        {
            Chipset.Mmio.Write(DeviceLayout.IoApicBase, 4, (ulong)(0x10 + (2 * pin) + half));
            Chipset.Mmio.Write(DeviceLayout.IoApicBase + 0x10, 4, (uint)(entry >> (32 * half)));
        }
    }

    public ulong Redirection(int pin)
    {
        ulong entry = 0;
        for (int half = 0; half < 2; half++)
        {
            Chipset.Mmio.Write(DeviceLayout.IoApicBase, 4, (ulong)(0x10 + (2 * pin) + half));
            entry |= Chipset.Mmio.Read(DeviceLayout.IoApicBase + 0x10, 4) << (32 * half);
        }

        return entry;
    }

    public List<byte> AcknowledgeAll(int vcpu = 0)
    {
        List<byte> vectors = [];
        while (Chipset.TryAcknowledge(vcpu, out byte vector))
        {
            vectors.Add(vector);
        }

        return vectors;
    }
}
