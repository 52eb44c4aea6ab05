namespace Dmp.Kvm.Cpu;

/// <summary>Kinds of exits, as the report names them.</summary>
public enum ExitKind
{
    /// <summary>A trapping sensitive instruction.</summary>
    Privileged,

    /// <summary>A silent sensitive instruction behind a one-byte trap.</summary>
    Silent,

    /// <summary>A write to a protected page table.</summary>
    PageTable,

    /// <summary>A page fault of ours, not the guest's.</summary>
    HiddenFault,

    /// <summary>A guest exception that was reflected through an exit.</summary>
    GuestFault,

    /// <summary>A system call.</summary>
    Syscall,

    /// <summary>Port or memory-mapped I/O.</summary>
    Io,

    /// <summary>A fetch from a code page that was not scanned yet.</summary>
    CodeScan,

    /// <summary>A write to a scanned code page.</summary>
    CodeWrite,

    /// <summary>The vCPU was kicked: timer, interrupt, pause.</summary>
    Kick,

    /// <summary>The guest halted.</summary>
    Halt,

    /// <summary>Everything else.</summary>
    Other,
}

/// <summary>Exits counted at one site.</summary>
/// <param name="Rip">Address of the guest instruction.</param>
/// <param name="Kind">Kind of exit.</param>
/// <param name="Exits">How many since the vCPU was created.</param>
public readonly record struct SiteCount(ulong Rip, ExitKind Kind, long Exits);

/// <summary>
/// A vCPU's exit counters: totals by kind and an open-addressed table by site. One writer (the vCPU thread), any readers: counters
/// are written with ordinary 8-byte stores (single-copy atomic on x86-64), a slot's key is published with a release store before
/// its first count, and keys are never removed. No locks, no allocation after construction.
/// </summary>
public sealed class ExitTable
{
    /// <summary>Number of <see cref="ExitKind"/> values.</summary>
    public const int KindCount = (int)ExitKind.Other + 1;

    private const int SiteBits = 14;
    private const int SiteSlots = 1 << SiteBits;
    private const int MaximumProbes = 32;
    private const int KindBits = 4;
    private const ulong ZeroRip = 1UL << 62;

    private readonly long[] totals = new long[KindCount];
    private readonly ulong[] keys = new ulong[SiteSlots];
    private readonly long[] counts = new long[SiteSlots];
    private long unattributed;
    private long nanosecondsOutside;
    private long nanosecondsInside;

    /// <summary>Exits whose site did not fit into the table; counted in the totals.</summary>
    public long Unattributed => Volatile.Read(ref unattributed);

    /// <summary>Time the vCPU thread spent between two KVM_RUN calls, in nanoseconds.</summary>
    public long NanosecondsOutsideGuest => Volatile.Read(ref nanosecondsOutside);

    /// <summary>Time the vCPU thread spent inside KVM_RUN, in nanoseconds.</summary>
    public long NanosecondsInsideGuest => Volatile.Read(ref nanosecondsInside);

    /// <summary>Exits of a kind.</summary>
    public long Total(ExitKind kind) => Volatile.Read(ref totals[(int)kind]);

    /// <summary>Exits of all kinds.</summary>
    public long Total()
    {
        long sum = 0;
        for (int kind = 0; kind < KindCount; kind++)
        {
            sum += Volatile.Read(ref totals[kind]);
        }

        return sum;
    }

    /// <summary>Counts an exit. Only on the vCPU thread.</summary>
    public void Count(ExitKind kind, ulong rip)
    {
        totals[(int)kind]++;
        ulong key = (rip << KindBits) | (ulong)kind | KeyInUse(rip);
        int slot = (int)((key * 0x9E37_79B9UL) >> 17) & (SiteSlots - 1);
        for (int probe = 0; probe < MaximumProbes; probe++, slot = (slot + 1) & (SiteSlots - 1))
        {
            ulong found = keys[slot];
            if (found == key)
            {
                counts[slot]++;
                return;
            }

            if (found == 0)
            {
                Volatile.Write(ref keys[slot], key);
                counts[slot] = 1;
                return;
            }
        }

        unattributed++;
    }

    /// <summary>Adds to the time accounts. Only on the vCPU thread.</summary>
    public void AddTime(long outside, long inside)
    {
        nanosecondsOutside += outside;
        nanosecondsInside += inside;
    }

    /// <summary>Copies the sites counted so far.</summary>
    /// <param name="destination">Receives the sites; cleared first.</param>
    public void SnapshotSites(List<SiteCount> destination)
    {
        ArgumentNullException.ThrowIfNull(destination);
        destination.Clear();
        for (int slot = 0; slot < SiteSlots; slot++)
        {
            ulong key = Volatile.Read(ref keys[slot]);
            if (key != 0)
            {
                // Bits 60..63 of a canonical address repeat bit 59, so the shifted-out ones are restored by sign extension.
                ulong rip = (ulong)((long)key >> KindBits);
                rip = rip == ZeroRip >> KindBits ? 0 : rip;
                destination.Add(new SiteCount(rip, (ExitKind)(key & ((1 << KindBits) - 1)), Volatile.Read(ref counts[slot])));
            }
        }
    }

    // An exit at RIP 0 of kind 0 would look like an empty slot; give it a key of its own by marking the (unused) top user bit.
    private static ulong KeyInUse(ulong rip) => rip == 0 ? ZeroRip : 0;
}
