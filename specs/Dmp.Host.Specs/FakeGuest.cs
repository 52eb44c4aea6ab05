using System.Collections.Concurrent;
using System.Text;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;

namespace Dmp.Host.Specs;

/// <summary>A machine with one vCPU that writes a text and then ends, or waits to be ended.</summary>
internal sealed class FakeGuest(string text, VcpuStop? ending) : IMachine, IVcpu, ISerialConsole, IMachineFacts
{
    private readonly ConcurrentQueue<byte> output = new();
    private readonly BlockingCollection<VcpuStop> stops = [];
    private readonly StringBuilder input = new();
    private bool written;
    private bool waitEnds;

    /// <summary>Thrown by Run instead of running.</summary>
    public Exception? Failure { get; init; }

    /// <summary>Ends the guest once it has received this text.</summary>
    public string? WaitsFor { get; init; }

    public bool Disposed { get; private set; }

    public IReadOnlyList<IVcpu> Vcpus => [this];

    public ISerialConsole Console => this;

    public int Index => 0;

    public ExitTable Exits { get; } = new();

    public WakeClock WakeClock { get; } = new();

    public string KernelId => "0123";

    public HostFacts Host { get; } = new() { Cpl0 = "emulated", ExitMicroseconds = 28.1 };

    public IReadOnlyDictionary<ushort, long> UnownedPorts { get; } = new Dictionary<ushort, long> { [0x80] = 3 };

    string? IMachineFacts.Symbol(ulong address) => address == 0x1000 ? "native_save_fl+0x0" : null;

    public VcpuStop Run()
    {
        if (Failure is not null)
        {
            throw Failure;
        }

        if (!written)
        {
            written = true;
            Exits.Count(ExitKind.Silent, 0x1000);
            Exits.Count(ExitKind.Silent, 0x1000);
            Exits.Count(ExitKind.Io, 0x2000);
            WakeClock.Halt(1_000_000);
            WakeClock.Wake(2_000_000);
            WakeClock.Run(2_012_500);
            Exits.AddTime(outside: 1_000_000, inside: 9_000_000);
            foreach (byte value in Encoding.UTF8.GetBytes(text))
            {
                output.Enqueue(value);
            }

            if (ending is not null)
            {
                return ending;
            }
        }

        return stops.Take();
    }

    public void RequestPause() => stops.Add(new VcpuStop.Paused());

    public string DescribeState() => "rip=0x1234";

    public int TakeOutput(Span<byte> buffer)
    {
        int taken = 0;
        while (taken < buffer.Length && output.TryDequeue(out byte value))
        {
            buffer[taken++] = value;
        }

        return taken;
    }

    public bool WaitForOutput(TimeSpan timeout)
    {
        _ = SpinWait.SpinUntil(() => !output.IsEmpty || Interlocked.Exchange(ref waitEnds, false), timeout);
        return !output.IsEmpty;
    }

    public void EndWait() => Volatile.Write(ref waitEnds, true);

    public int PutInput(ReadOnlySpan<byte> bytes)
    {
        input.Append(Encoding.UTF8.GetString(bytes));
        if (WaitsFor is not null && input.ToString().Contains(WaitsFor, StringComparison.Ordinal))
        {
            stops.Add(new VcpuStop.PoweredOff());
        }

        return bytes.Length;
    }

    public void Dispose() => Disposed = true;
}
