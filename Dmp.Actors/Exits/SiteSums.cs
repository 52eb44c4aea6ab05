using System.Runtime.InteropServices;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Exits;

/// <summary>
/// The sites of all vCPUs together, for whoever looks often: tables that have not counted since the last look are not read again, and
/// buffers are kept. One user at a time.
/// </summary>
/// <param name="vcpus">The vCPUs.</param>
internal sealed class SiteSums(IReadOnlyList<IVcpu> vcpus)
{
    private readonly long[] totals = new long[vcpus.Count];
    private readonly List<SiteCount>[] sites = [.. vcpus.Select(_ => new List<SiteCount>())];
    private readonly Dictionary<(ulong Rip, ExitKind Kind), long> sums = [];
    private readonly List<SiteCount> result = [];

    /// <summary>Exits of all kinds and vCPUs since the last <see cref="Take"/>.</summary>
    public long Added()
    {
        long added = 0;
        for (int index = 0; index < vcpus.Count; index++)
        {
            added += vcpus[index].Exits.Total() - totals[index];
        }

        return added;
    }

    /// <summary>Looks at the tables.</summary>
    /// <returns>All sites, in no order; valid until the next look.</returns>
    public IReadOnlyList<SiteCount> Take()
    {
        bool changed = false;
        for (int index = 0; index < vcpus.Count; index++)
        {
            // The total first: what is counted in between makes the next look read the table again.
            ExitTable table = vcpus[index].Exits;
            long total = table.Total();
            if (total != totals[index])
            {
                totals[index] = total;
                table.SnapshotSites(sites[index]);
                changed = true;
            }
        }

        if (vcpus.Count == 1)
        {
            return sites[0];
        }

        if (changed)
        {
            Add();
        }

        return result;
    }

    private void Add()
    {
        sums.Clear();
        foreach (List<SiteCount> ofOne in sites)
        {
            foreach (SiteCount site in ofOne)
            {
                CollectionsMarshal.GetValueRefOrAddDefault(sums, (site.Rip, site.Kind), out _) += site.Exits;
            }
        }

        result.Clear();
        foreach (((ulong rip, ExitKind kind), long exits) in sums)
        {
            result.Add(new SiteCount(rip, kind, exits));
        }
    }
}
