namespace Dmp.Kvm.Emulation;

/// <summary>Counts accesses to MSRs that nobody owns. Any thread; not on the hot path (each one ends in a #GP of the guest).</summary>
internal sealed class UnownedMsrs
{
    private readonly Lock sync = new();
    private readonly Dictionary<uint, long> counts = [];

    internal void Count(uint msr)
    {
        lock (sync)
        {
            counts[msr] = counts.GetValueOrDefault(msr) + 1;
        }
    }

    internal IReadOnlyDictionary<uint, long> Snapshot()
    {
        lock (sync)
        {
            return new Dictionary<uint, long>(counts);
        }
    }
}
