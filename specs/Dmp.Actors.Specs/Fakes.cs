using System.Collections.Concurrent;
using System.Text;
using Dmp.Actors.Console;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Specs;

/// <summary>A vCPU whose every step the spec decides. Run blocks until there is a step, as a guest would run.</summary>
internal sealed class FakeVcpu(int index, ConcurrentQueue<string> events) : IVcpu
{
    private readonly BlockingCollection<Func<VcpuStop>> steps = [];
    private readonly ExitTable exits = new();
    private volatile bool inGuest;

    public int Index => index;

    public bool IgnoresPause { get; set; }

    /// <summary>How often the next readers of the exit table fail.</summary>
    public int FailingReads { get; set; }

    public int Runs { get; private set; }

    /// <summary>Whether Run is executing.</summary>
    public bool InGuest => inGuest;

    public WakeClock? WakeClock { get; set; }

    public ExitTable Exits
    {
        get
        {
            if (FailingReads > 0)
            {
                FailingReads--;
                throw new InvalidOperationException("injected into the exit table");
            }

            return exits;
        }
    }

    public void Count(ExitKind kind, ulong rip) => exits.Count(kind, rip);

    public void Stop(VcpuStop stop) => steps.Add(() => stop);

    public void Throw(Exception failure) => steps.Add(() => throw failure);

    public VcpuStop Run()
    {
        Runs++;
        inGuest = true;
        Func<VcpuStop> step = steps.Take();
        inGuest = false;
        VcpuStop stop = step();
        events.Enqueue($"vcpu {index} {stop.GetType().Name}");
        return stop;
    }

    public void RequestPause()
    {
        if (!IgnoresPause)
        {
            Stop(new VcpuStop.Paused());
        }
    }

    public string DescribeState() => $"state of vCPU {index}";
}

/// <summary>A console that the spec writes on.</summary>
internal sealed class FakeConsole(ConcurrentQueue<string> events) : ISerialConsole
{
    private readonly object gate = new();
    private readonly Queue<byte> output = new();
    private readonly List<byte> input = [];
    private bool waitEnds;

    public int InputCapacity { get; set; } = int.MaxValue;

    public string Input
    {
        get
        {
            lock (gate)
            {
                return Encoding.UTF8.GetString([.. input]);
            }
        }
    }

    public void Write(string text)
    {
        lock (gate)
        {
            foreach (byte value in Encoding.UTF8.GetBytes(text))
            {
                output.Enqueue(value);
            }

            Monitor.PulseAll(gate);
        }
    }

    public int TakeOutput(Span<byte> buffer)
    {
        lock (gate)
        {
            int taken = 0;
            while (taken < buffer.Length && output.TryDequeue(out byte value))
            {
                buffer[taken++] = value;
            }

            if (taken > 0)
            {
                events.Enqueue("console taken");
            }

            return taken;
        }
    }

    public bool WaitForOutput(TimeSpan timeout)
    {
        lock (gate)
        {
            if (output.Count == 0 && !waitEnds)
            {
                _ = Monitor.Wait(gate, timeout);
            }

            waitEnds = false;
            return output.Count > 0;
        }
    }

    public void EndWait()
    {
        lock (gate)
        {
            waitEnds = true;
            Monitor.PulseAll(gate);
        }
    }

    public int PutInput(ReadOnlySpan<byte> bytes)
    {
        lock (gate)
        {
            int taken = Math.Min(bytes.Length, InputCapacity - input.Count);
            input.AddRange(bytes[..taken]);
            return taken;
        }
    }
}

/// <summary>A machine of fakes that remembers in which order things happened to it.</summary>
internal sealed class FakeMachine : IMachine
{
    public FakeMachine(int cpus)
    {
        Fakes = [.. Enumerable.Range(0, cpus).Select(index => new FakeVcpu(index, Events))];
        FakeConsole = new FakeConsole(Events);
    }

    public ConcurrentQueue<string> Events { get; } = new();

    public FakeVcpu[] Fakes { get; }

    public FakeConsole FakeConsole { get; }

    public IReadOnlyList<IVcpu> Vcpus => Fakes;

    public ISerialConsole Console => FakeConsole;

    public FakePatchEngine? Engine { get; init; }

    public IPatchEngine? Patching => Engine;

    public void Dispose() => Events.Enqueue("disposed");
}

/// <summary>Keeps what reaches it, and fails when told to.</summary>
internal sealed class FakeSink : IConsoleSink
{
    private readonly object gate = new();
    private readonly List<byte> bytes = [];
    private int failures;

    public string Text
    {
        get
        {
            lock (gate)
            {
                return Encoding.UTF8.GetString([.. bytes]);
            }
        }
    }

    public void FailNext(int times) => Interlocked.Exchange(ref failures, times);

    public void Write(ReadOnlyMemory<byte> written)
    {
        if (Volatile.Read(ref failures) > 0)
        {
            Interlocked.Decrement(ref failures);
            throw new InvalidOperationException("injected into the sink");
        }

        lock (gate)
        {
            bytes.AddRange(written.Span);
        }
    }
}
