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

    // How long output may lie where nobody signals it: a guest that does not exit has written it to the UART's ring. Doubles while there is
    // none: the vCPUs look at every exit too, so that all of a guest that idles is found by them.
    private static readonly TimeSpan ShortestLook = TimeSpan.FromMilliseconds(20);
    private static readonly TimeSpan LongestLook = TimeSpan.FromMilliseconds(320);

    private readonly OutputChain output = new();
    private readonly ByteRing input = new(InputCapacity);
    private readonly object wake = new();

    // The reader's alone.
    private TimeSpan look = ShortestLook;

    // Published by the order that Put describes.
    private bool readerWaits;

    // Under the lock.
    private bool waitEnds;

    /// <summary>Called after input was queued, on the thread that queued it. Set before the machine runs.</summary>
    public Action? InputArrived { get; set; }

    /// <summary>
    /// Called by the reader before it looks for output: puts what a guest that does not exit has written meanwhile. Set before the machine
    /// runs; null when there is no such output.
    /// </summary>
    internal Action? OutputWanted { get; set; }

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
    public int TakeOutput(Span<byte> buffer)
    {
        OutputWanted?.Invoke();
        return output.Take(buffer);
    }

    /// <inheritdoc/>
    public bool WaitForOutput(TimeSpan timeout)
    {
        if (output.HasBytes)
        {
            look = ShortestLook;
            return true;
        }

        long start = Stopwatch.GetTimestamp();
        bool waited = true;
        while (waited)
        {
            // Not under the lock that Put takes.
            OutputWanted?.Invoke();
            lock (wake)
            {
                Volatile.Write(ref readerWaits, true);
                Interlocked.MemoryBarrier();
                TimeSpan left = timeout == Timeout.InfiniteTimeSpan ? TimeSpan.MaxValue : timeout - Stopwatch.GetElapsedTime(start);
                waited = !output.HasBytes && left > TimeSpan.Zero && !waitEnds;
                if (waited && !System.Threading.Monitor.Wait(wake, Step(left)))
                {
                    look = look < LongestLook ? 2 * look : LongestLook;
                }

                if (!waited)
                {
                    waitEnds = false;
                }

                Volatile.Write(ref readerWaits, false);
            }
        }

        if (!output.HasBytes)
        {
            return false;
        }

        look = ShortestLook;
        Thread.Sleep(GatherTime);
        return true;
    }

    /// <inheritdoc/>
    public void EndWait()
    {
        lock (wake)
        {
            waitEnds = true;
            System.Threading.Monitor.Pulse(wake);
        }
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

    private TimeSpan Step(TimeSpan left)
    {
        TimeSpan longest = OutputWanted is null ? TimeSpan.MaxValue : look;
        TimeSpan step = left < longest ? left : longest;
        return step == TimeSpan.MaxValue ? Timeout.InfiniteTimeSpan : step;
    }
}
