namespace Dmp.Kvm.Memory;

/// <summary>
/// Which vCPUs may have a frame in their virtual TLBs: one bit for each vCPU. A bit may be set for a vCPU that has dropped the frame long
/// ago; it is never clear for one that has it. Any thread, without locks.
/// </summary>
/// <remarks>
/// A vCPU notes a frame <i>before</i> it looks at what the frame is (<see cref="CodeScan.CodePages"/>) and fills its TLB by that. Whoever
/// changes what a frame is does so first, and then asks who uses it. Both steps have a full barrier between them (an interlocked operation
/// here or the lock there), so either the vCPU sees the change, or the one who changes sees the vCPU.
/// </remarks>
internal sealed class FrameUsers
{
    private const int SmallPagesPerLargeShift = 9;

    // By frame, and by 2 MiB for large entries. Interlocked.
    private readonly uint[] small;
    private readonly uint[] large;

    /// <summary>Nobody uses anything yet.</summary>
    /// <param name="frames">Frames of guest RAM.</param>
    internal FrameUsers(ulong frames)
    {
        small = new uint[frames];
        large = new uint[(frames >> SmallPagesPerLargeShift) + 1];
    }

    /// <summary>A vCPU is about to map a frame.</summary>
    internal void Note(ulong frame, int vcpu)
    {
        if (frame < (ulong)small.Length)
        {
            Set(ref small[frame], vcpu);
        }
    }

    /// <summary>A vCPU is about to map the whole 2 MiB around a frame with one entry.</summary>
    internal void NoteLarge(ulong frame, int vcpu)
    {
        if (frame < (ulong)small.Length)
        {
            Set(ref large[frame >> SmallPagesPerLargeShift], vcpu);
        }
    }

    /// <summary>The vCPUs that may map a frame.</summary>
    internal uint Of(ulong frame) => frame < (ulong)small.Length
        ? Volatile.Read(ref small[frame]) | Volatile.Read(ref large[frame >> SmallPagesPerLargeShift])
        : 0;

    private static void Set(ref uint users, int vcpu)
    {
        uint bit = 1u << vcpu;
        if ((Volatile.Read(ref users) & bit) == 0)
        {
            _ = Interlocked.Or(ref users, bit);
        }
    }
}
