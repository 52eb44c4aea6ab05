using System.Runtime.Intrinsics.X86;

namespace Dmp.Kvm.Interop;

/// <summary>The CPU this process runs on, as CPUID tells it here.</summary>
internal static class HostCpu
{
    private const uint ExtendedLeaf = 0x8000_0000;
    private const uint IndexIsSignificant = 1;
    private const uint XSaveLeaf = 0xD;
    private const int XSaveComponents = 63;

    /// <summary>All leaves that the CPUID model may use, in the form KVM lists them in.</summary>
    internal static KvmCpuidEntry[] Cpuid()
    {
        List<KvmCpuidEntry> entries = [];
        uint basic = Query(0).Eax;
        for (uint function = 0; function <= basic; function++)
        {
            int indices = function switch { 7 => 2, XSaveLeaf => XSaveComponents, _ => 0 };
            for (uint index = 0; index < Math.Max(1, indices); index++)
            {
                entries.Add(Query(function, index, indices > 0));
            }
        }

        uint extended = Query(ExtendedLeaf).Eax;
        for (uint function = ExtendedLeaf; function <= extended; function++)
        {
            entries.Add(Query(function));
        }

        return [.. entries];
    }

    private static KvmCpuidEntry Query(uint function, uint index = 0, bool indexed = false)
    {
        (int eax, int ebx, int ecx, int edx) = X86Base.CpuId((int)function, (int)index);
        return new KvmCpuidEntry
        {
            Function = function,
            Index = index,
            Flags = indexed ? IndexIsSignificant : 0,
            Eax = (uint)eax,
            Ebx = (uint)ebx,
            Ecx = (uint)ecx,
            Edx = (uint)edx,
        };
    }
}
