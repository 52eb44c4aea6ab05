using System.Collections.Concurrent;
using Dmp.Actors.Exits;
using Dmp.Kvm.Cpu;
using FsCheck.Xunit;

namespace Dmp.Actors.Specs.Exits;

public class SiteSumsSpecs
{
    [Property(DisplayName = "However many vCPUs count in whichever order, each look finds the sum of each site")]
    public void Sums(byte cpus, byte[] counted)
    {
        FakeVcpu[] vcpus = [.. Enumerable.Range(0, (cpus % 4) + 1).Select(index => new FakeVcpu(index, new ConcurrentQueue<string>()))];
        var sums = new SiteSums(vcpus);
        var expected = new Dictionary<(ulong Rip, ExitKind Kind), long>();
        foreach (byte one in counted)
        {
            (ulong Rip, ExitKind Kind) site = ((ulong)(one % 5) << 4, one % 2 == 0 ? ExitKind.Io : ExitKind.Silent);
            vcpus[one % vcpus.Length].Count(site.Kind, site.Rip);
            expected[site] = expected.GetValueOrDefault(site) + 1;
            if (one % 3 == 0)
            {
                Assert.Equal(expected, sums.Take().ToDictionary(found => (found.Rip, found.Kind), found => found.Exits));
            }
        }

        Assert.Equal(expected, sums.Take().ToDictionary(found => (found.Rip, found.Kind), found => found.Exits));
    }
}
