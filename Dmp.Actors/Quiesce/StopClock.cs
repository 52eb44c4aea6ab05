using System.Diagnostics;

namespace Dmp.Actors.Quiesce;

/// <summary>
/// When each vCPU's thread last stopped and went on, by the thread's own clock: the actors' messages take time of their own. Each pair of
/// fields has one writer, the vCPU's thread; they are read when all threads have gone on, or nearly, and published with Volatile.
/// </summary>
/// <param name="vcpus">Number of vCPUs.</param>
public sealed class StopClock(int vcpus)
{
    private readonly long[] stopped = new long[vcpus];
    private readonly long[] resumed = new long[vcpus];

    /// <summary>A vCPU's thread has left guest code. On that thread.</summary>
    /// <param name="vcpu">Index of the vCPU.</param>
    public void Stop(int vcpu) => Volatile.Write(ref stopped[vcpu], Stopwatch.GetTimestamp());

    /// <summary>A vCPU's thread is about to enter guest code. On that thread.</summary>
    /// <param name="vcpu">Index of the vCPU.</param>
    public void Resume(int vcpu) => Volatile.Write(ref resumed[vcpu], Stopwatch.GetTimestamp());

    /// <summary>How long the world stood, the last time that it did: from the first stop to the last entry.</summary>
    /// <returns>Null while a vCPU still stands, and when one has never run: it stood before anybody asked it to.</returns>
    public TimeSpan? LastStop()
    {
        long first = long.MaxValue;
        long last = 0;
        for (int vcpu = 0; vcpu < vcpus; vcpu++)
        {
            long from = Volatile.Read(ref stopped[vcpu]);
            long to = Volatile.Read(ref resumed[vcpu]);
            if (from == 0 || to < from)
            {
                return null;
            }

            first = Math.Min(first, from);
            last = Math.Max(last, to);
        }

        return Stopwatch.GetElapsedTime(first, last);
    }
}
