using System.Diagnostics;
using Dmp.Kvm.Machine;

namespace Dmp.Kvm.Devices;

/// <summary>
/// The host's end of the serial line. The producer of output is whichever vCPU thread holds the UART's lock, so there is one at a
/// time; one reader thread takes it. Input goes the other way through a bounded ring.
/// </summary>
public sealed class SerialConsole : ISerialConsole, IConsoleOutput, IConsoleInput
{
    private const int InputCapacity = 64 << 10;

    // A reader woken for every single character would cost the vCPU a system call for every character. It waits this long
    // after it was woken, so that a line of text is one wake-up.
    private static readonly TimeSpan GatherTime = TimeSpan.FromMilliseconds(1);

    private readonly OutputChain output = new();
    private readonly ByteRing input = new(InputCapacity);
    private readonly object wake = new();
    private bool readerWaits;

    /// <summary>Called after input was queued, on the thread that queued it. Set before the machine runs.</summary>
    public Action? InputArrived { get; set; }

    /// <inheritdoc/>
    public void Put(byte value)
    {
        output.Put(value);

        // The byte is published before the flag is read, and the reader raises the flag before it looks for bytes:
        // whatever the order, one of the two sees the other.
        Interlocked.MemoryBarrier();
        if (Volatile.Read(ref readerWaits))
        {
            lock (wake)
            {
                Volatile.Write(ref readerWaits, false);
                System.Threading.Monitor.Pulse(wake);
            }
        }
    }

    /// <inheritdoc/>
    public int TakeOutput(Span<byte> buffer) => output.Take(buffer);

    /// <inheritdoc/>
    public bool WaitForOutput(TimeSpan timeout)
    {
        if (output.HasBytes)
        {
            return true;
        }

        long start = Stopwatch.GetTimestamp();
        lock (wake)
        {
            while (true)
            {
                Volatile.Write(ref readerWaits, true);
                Interlocked.MemoryBarrier();
                TimeSpan left = timeout == Timeout.InfiniteTimeSpan ? timeout : timeout - Stopwatch.GetElapsedTime(start);
                if (output.HasBytes || (left <= TimeSpan.Zero && left != Timeout.InfiniteTimeSpan))
                {
                    break;
                }

                System.Threading.Monitor.Wait(wake, left);
            }

            Volatile.Write(ref readerWaits, false);
        }

        if (!output.HasBytes)
        {
            return false;
        }

        Thread.Sleep(GatherTime);
        return true;
    }

    /// <inheritdoc/>
    public int PutInput(ReadOnlySpan<byte> bytes)
    {
        int accepted = input.Put(bytes);
        if (accepted > 0)
        {
            InputArrived?.Invoke();
        }

        return accepted;
    }

    /// <inheritdoc/>
    public bool TryTake(out byte value) => input.TryTake(out value);
}
