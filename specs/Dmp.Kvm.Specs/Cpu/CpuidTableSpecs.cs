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
        int answers = 0;
        for (uint function = 0; function < 0x30; function++)
        {
            foreach (uint range in (uint[])[0, 0x4000_0000, 0x8000_0000])
            {
                for (uint index = 0; index < 70; index++)
                {
                    if (Find(table, range + function, index) is { } found)
                    {
                        Assert.Equal(model.Query(range + function, index, Vcpu, state), found);
                        answers++;
                    }
                }
            }
        }

        Assert.InRange(answers, 100, int.MaxValue);
    }

    [Theory(DisplayName = "The table knows the leaves that kernels ask for, those without a feature included")]
    [InlineData(0, 5)]
    [InlineData(1, 0)]
    [InlineData(5, 0)]
    [InlineData(7, 0)]
    [InlineData(0xB, 1)]
    [InlineData(0xD, 0)]
    [InlineData(0xD, 1)]
    [InlineData(0xD, 2)]
    [InlineData(0x4000_0001, 77)]
    [InlineData(0x8000_0008, 1)]
    public void Known(uint function, uint index)
    {
        CpuidTable table = new(model, Vcpu, region: null);
        table.Refresh(new CpuState());
        Assert.NotNull(Find(table, function, index));
    }

    [Fact(DisplayName = "The table ends with an entry that is not in use, however much the host has")]
    public void Ends()
    {
        CpuidTable table = new(Model(extended: uint.MaxValue), Vcpu, region: null);
        table.Refresh(new CpuState());
        Assert.Equal(CpuidTable.Capacity, table.Entries.Length);
        Assert.Equal(0u, table.Entries[^1].InUse);
        Assert.NotEqual(0u, table.Entries[^2].InUse);
    }

    // As the implant looks it up.
    private static CpuidResult? Find(CpuidTable table, uint function, uint index)
    {
        foreach (CpuidTableEntry entry in table.Entries)
        {
            if (entry.InUse == 0)
            {
                return null;
            }

            if (entry.Function == function && (index & entry.IndexMask) == entry.Index)
            {
                return new CpuidResult(entry.Eax, entry.Ebx, entry.Ecx, entry.Edx);
            }
        }

        return null;
    }

    private static CpuidModel Model(uint extended = 0x8000_0021)
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
                Leaf(0, 0x1F), Leaf(1, 0x1_06F2), Leaf(4, 1, 0, true), Leaf(4, 2, 1, true), Leaf(7, 1, 0, true), Leaf(7, 2, 1, true),
                Leaf(0xB, 1, 0, true), Leaf(0xB, 1, 1, true), Leaf(0xD, 0xE7, 0, true), Leaf(0xD, 0xF, 1, true), Leaf(0xD, 256, 2, true),
                Leaf(0x8000_0000, extended), Leaf(0x8000_0001, 1), Leaf(0x8000_0008, 0x3030), Leaf(0x8000_001D, 3, 0, true),
            ],
            new CpuidConfiguration(4, 2_500_000_000, Intel: false));
    }
}
