using System.Runtime.Intrinsics.X86;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Cpu;

/// <summary>The CPU this process runs on, as CPUID tells it here.</summary>
internal static class HostCpu
{
    private const uint ExtendedLeaf = 0x8000_0000;
    private const uint IndexIsSignificant = 1;
    private const uint CacheLeaf = 4;
    private const uint FeatureLeaf = 7;
    private const uint XSaveLeaf = 0xD;
    private const uint AmdCacheLeaf = 0x8000_001D;
    private const int FeatureIndices = 2;
    private const int XSaveComponents = 63;
    private const uint CacheTypeMask = 0x1F;

    // More than any processor has; one that does not look at the index must not be asked for ever.
    private const int MostCaches = 16;

    /// <summary>All leaves that the CPUID model may use, in the form KVM lists them in.</summary>
    internal static KvmCpuidEntry[] Cpuid() => List(static (function, index) =>
    {
        (int eax, int ebx, int ecx, int edx) = X86Base.CpuId((int)function, (int)index);
        return new CpuidResult((uint)eax, (uint)ebx, (uint)ecx, (uint)edx);
    });

    /// <summary>As <see cref="Cpuid"/>, of any processor.</summary>
    /// <param name="cpuid">What it answers to EAX and ECX.</param>
    internal static KvmCpuidEntry[] List(Func<uint, uint, CpuidResult> cpuid)
    {
        List<KvmCpuidEntry> entries = [];
        uint basic = cpuid(0, 0).Eax;
        for (uint function = 0; function <= basic; function++)
        {
            AddAll(function, cpuid, entries);
        }

        uint extended = cpuid(ExtendedLeaf, 0).Eax;
        for (uint function = ExtendedLeaf; function <= extended; function++)
        {
            AddAll(function, cpuid, entries);
        }

        return [.. entries];
    }

    private static void AddAll(uint function, Func<uint, uint, CpuidResult> cpuid, List<KvmCpuidEntry> entries)
    {
        int indices = function switch
        {
            FeatureLeaf => FeatureIndices,
            XSaveLeaf => XSaveComponents,
            CacheLeaf or AmdCacheLeaf => MostCaches,
            _ => 0,
        };
        for (uint index = 0; index < Math.Max(1, indices); index++)
        {
            CpuidResult answer = cpuid(function, index);
            entries.Add(new KvmCpuidEntry
            {
                Function = function,
                Index = index,
                Flags = indices > 0 ? IndexIsSignificant : 0,
                Eax = answer.Eax,
                Ebx = answer.Ebx,
                Ecx = answer.Ecx,
                Edx = answer.Edx,
            });
            if (function is CacheLeaf or AmdCacheLeaf && (answer.Eax & CacheTypeMask) == 0)
            {
                // What comes behind the last cache is none, as this one.
                break;
            }
        }
    }
}
