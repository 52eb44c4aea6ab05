using Dmp.Kvm.Locking;

namespace Dmp.Kvm.Emulation;

/// <summary>Counts accesses to MSRs that nobody owns. Any thread; not on the hot path (each one ends in a #GP of the guest).</summary>
internal sealed class UnownedMsrs
{
    private readonly OrderedLock sync = new(LockRank.UnownedMsrs);
    private readonly Dictionary<uint, long> counts = [];

    internal void Count(uint msr)
    {
        using (sync.Enter())
        {
            counts[msr] = counts.GetValueOrDefault(msr) + 1;
        }
    }

    internal IReadOnlyDictionary<uint, long> Snapshot()
    {
        using (sync.Enter())
        {
            return new Dictionary<uint, long>(counts);
        }
    }
}
