using System.Diagnostics;

namespace Dmp.Actors.Quiesce;

/// <summary>
/// When each vCPU's thread stopped and went on, by the thread's own clock: the actors' messages take time of their own. Each time has one
/// writer, the vCPU's thread, and is published with Volatile; the coordinator reads them while all threads stand, or have gone on.
/// </summary>
/// <param name="vcpus">Number of vCPUs.</param>
public sealed class StopClock(int vcpus)
{
    private readonly long[] stopped = new long[vcpus];

    // Replaced by the coordinator while all threads stand; they see it when they go on.
    private volatile WorldStop? current;

    /// <summary>The time now.</summary>
    public static long Now => Stopwatch.GetTimestamp();

    /// <summary>A vCPU's thread has left guest code. On that thread.</summary>
    /// <param name="vcpu">Index of the vCPU.</param>
    public void Stop(int vcpu) => Volatile.Write(ref stopped[vcpu], Now);

    /// <summary>A vCPU's thread is about to enter guest code. On that thread.</summary>
    /// <param name="vcpu">Index of the vCPU.</param>
    public void Resume(int vcpu) => current?.Enter(vcpu, Now);

    /// <summary>All vCPUs stand: the times at which they go on from here are kept. Only while they stand.</summary>
    /// <param name="asked">When they were asked to.</param>
    /// <returns>The stop; null when a vCPU stood already, for somebody else or because it has never run: then this was none.</returns>
    public WorldStop? Stand(long asked)
    {
        long first = long.MaxValue;
        for (int vcpu = 0; vcpu < vcpus; vcpu++)
        {
            first = Math.Min(first, Volatile.Read(ref stopped[vcpu]));
        }

        current = first < asked ? null : new WorldStop(first, vcpus);
        return current;
    }
}

/// <summary>One stop of the world.</summary>
/// <param name="first">When the first vCPU stopped.</param>
/// <param name="vcpus">Number of vCPUs.</param>
public sealed class WorldStop(long first, int vcpus)
{
    private readonly long[] entered = new long[vcpus];

    /// <summary>From the first vCPU's stop to the last one's entry; null while one has not entered.</summary>
    public TimeSpan? Length
    {
        get
        {
            long last = 0;
            for (int vcpu = 0; vcpu < vcpus; vcpu++)
            {
                long at = Volatile.Read(ref entered[vcpu]);
                if (at == 0)
                {
                    return null;
                }

                last = Math.Max(last, at);
            }

            return Stopwatch.GetElapsedTime(first, last);
        }
    }

    // Only the first entry ends this stop; what comes later ends somebody else's.
    internal void Enter(int vcpu, long at)
    {
        if (entered[vcpu] == 0)
        {
            Volatile.Write(ref entered[vcpu], at);
        }
    }
}
