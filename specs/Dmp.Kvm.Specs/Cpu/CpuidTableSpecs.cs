using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Specs.Cpu;

/// <summary>The table that implants answer CPUID from, against the model.</summary>
public class CpuidTableSpecs
{
    private const int Vcpu = 2;

    private readonly CpuidModel model = Model();

    [Theory(DisplayName = "Every answer in the table is the model's, whatever CR4 and XCR0 were before")]
    [InlineData(false, 1)]
    [InlineData(true, 1)]
    [InlineData(true, 3)]
    [InlineData(true, 7)]
    [InlineData(false, 0xE7)]
    public void Same(bool xsave, ulong xcr0)
    {
        CpuidTable table = new(model, Vcpu, region: null);
        CpuState state = new() { Xcr0 = 0xE7, Cr4 = Cr4.XSave };
        table.Refresh(state);
        state.Xcr0 = xcr0;
        state.Cr4 = xsave ? Cr4.XSave : Cr4.None;
        table.Refresh(state);
        for (uint function = 0; function < 0x30; function++)
        {
            foreach (uint range in (uint[])[0, 0x1000, 0x3FFF_FFD0, 0x4000_0000, 0x4000_FF00, 0x7FFF_FFD0, 0x8000_0000, 0xFFFF_FFD0])
            {
                foreach (uint index in (uint[])[0, 1, 2, 3, 11, 63, uint.MaxValue])
                {
                    CpuidResult? found = Find(table, range + function, index);
                    bool level = range + function == 0xB && index > 1;
                    Assert.Equal(level ? null : model.Query(range + function, index, Vcpu, state), found);
                }
            }
        }
    }

    [Fact(DisplayName = "A host with more than there is room for has a table that ends, and traps for the rest")]
    public void Ends()
    {
        CpuidTable table = new(Model(cacheLeaves: 500), Vcpu, region: null);
        CpuState state = new();
        table.Refresh(state);
        Assert.Equal(CpuidTable.Capacity, table.Entries.Length);
        Assert.Equal(0u, table.Entries[^1].Functions);
        Assert.NotEqual(0u, table.Entries[^2].Functions);
        Assert.Equal(model.Query(1, 0, Vcpu, state), Find(table, 1, 0));
        Assert.Null(Find(table, 0x8000_0000, 0));
    }

    // As the implant looks it up.
    private static CpuidResult? Find(CpuidTable table, uint function, uint index)
    {
        foreach (CpuidTableEntry entry in table.Entries)
        {
            if (entry.Functions == 0)
            {
                return null;
            }

            if (function - entry.Function < entry.Functions && (index & entry.IndexMask) == entry.Index)
            {
                return new CpuidResult(entry.Eax, entry.Ebx, entry.Ecx, entry.Edx);
            }
        }

        return null;
    }

    private static CpuidModel Model(int cacheLeaves = 2)
    {
        KvmCpuidEntry Leaf(uint function, uint eax, uint index = 0, bool indexed = false) => new()
        {
            Function = function,
            Index = index,
            Flags = indexed ? 1u : 0,
            Eax = eax,
            Ebx = 0x1234_5678,
            Ecx = 0x5A5A_5A5A,
            Edx = 0x1357_9BDF,
        };
        return new CpuidModel(
            [
                Leaf(0, 0x1F), Leaf(1, 0x1_06F2),
                .. Enumerable.Range(0, cacheLeaves).Select(level => Leaf(4, (uint)level + 1, (uint)level, true)),
                Leaf(7, 1, 0, true), Leaf(7, 2, 1, true),
                Leaf(0xB, 1, 0, true), Leaf(0xB, 1, 1, true), Leaf(0xD, 0xE7, 0, true), Leaf(0xD, 0xF, 1, true), Leaf(0xD, 256, 2, true),
                Leaf(0x8000_0000, 0x8000_0021), Leaf(0x8000_0001, 1), Leaf(0x8000_0008, 0x3030), Leaf(0x8000_001D, 3, 0, true),
            ],
            new CpuidConfiguration(4, 2_500_000_000, Intel: false));
    }
}
