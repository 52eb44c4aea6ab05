using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Specs.Cpu;

public class CpuidModelSpecs
{
    private const ulong Frequency = 2_500_000_000;

    private readonly CpuState state = new();

    [Fact(DisplayName = "What a deprivileged kernel cannot have is hidden even when the host has everything")]
    public void Hidden()
    {
        CpuidModel model = Model();
        CpuidResult one = model.Query(1, 0, 0, state);
        CpuidResult seven = model.Query(7, 0, 0, state);
        CpuidResult extended = model.Query(0x8000_0001, 0, 0, state);
        Assert.Equal(0u, one.Ecx & ((1u << 3) | (1u << 5))); // MONITOR, VMX
        Assert.Equal(0u, seven.Ebx & ((1u << 7) | (1u << 20))); // SMEP, SMAP
        Assert.Equal(0u, seven.Ecx & (3u << 3)); // PKU, OSPKE
        Assert.Equal(0u, seven.Ecx & (1u << 16)); // LA57
        Assert.Equal(0u, extended.Ecx & (1u << 2)); // SVM
        Assert.Equal(0u, model.Query(0xD, 1, 0, state).Eax & (3u << 3)); // XSAVES, XFD
        Assert.Equal(default, model.Query(0x8000_000A, 0, 0, state));
        Assert.Equal(default, model.Query(5, 0, 0, state));
    }

    [Fact(DisplayName = "What Dmp emulates is present even when the host has nothing")]
    public void Emulated()
    {
        CpuidModel model = Model(bits: 0);
        uint ecx = model.Query(1, 0, 0, state).Ecx;
        Assert.Equal((1u << 17) | (1u << 21) | (1u << 24) | (1u << 31), ecx);
        Assert.Equal(1u << 10, model.Query(7, 0, 0, state).Ebx);
        Assert.False(model.HasUmip || model.HasFsGsBase);
        Assert.True(Model().HasUmip && Model().HasFsGsBase);
    }

    [Fact(DisplayName = "OSXSAVE follows CR4")]
    public void OsXsave()
    {
        CpuidModel model = Model();
        Assert.Equal(0u, model.Query(1, 0, 0, state).Ecx & (1u << 27));
        state.Cr4 |= Cr4.XSave;
        Assert.NotEqual(0u, model.Query(1, 0, 0, state).Ecx & (1u << 27));
    }

    [Theory(DisplayName = "Leaf 0xD gives the size of what XCR0 enables, and of all that can be")]
    [InlineData(1, 576)]
    [InlineData(3, 576)]
    [InlineData(7, 832)]
    [InlineData(0xE7, 2688)]
    [InlineData(0x2FF, 2688)]
    public void Xsave(ulong xcr0, uint size)
    {
        CpuidModel model = Model();
        state.Xcr0 = xcr0;
        CpuidResult leaf = model.Query(0xD, 0, 0, state);
        Assert.Equal(0xE7UL, model.SupportedXcr0);
        Assert.Equal((0xE7u, size, 2688u, 0u), (leaf.Eax, leaf.Ebx, leaf.Ecx, leaf.Edx));
        Assert.Equal(default, model.Query(0xD, 9, 0, state));
    }

    [Fact(DisplayName = "Each vCPU has its APIC id, and is a core of its own in one package")]
    public void Apic_ids()
    {
        CpuidModel model = Model(cpus: 3);
        for (uint vcpu = 0; vcpu < 3; vcpu++)
        {
            Assert.Equal((vcpu << 24) | (3u << 16), model.Query(1, 0, (int)vcpu, state).Ebx & 0xFFFF_0000);
            Assert.Equal(new CpuidResult(0, 1, 0x100, vcpu), model.Query(0xB, 0, (int)vcpu, state));
            Assert.Equal(new CpuidResult(2, 3, 0x201, vcpu), model.Query(0xB, 1, (int)vcpu, state));
            Assert.Equal(new CpuidResult(0, 0, 2, vcpu), model.Query(0xB, 2, (int)vcpu, state));
        }

        Assert.Equal(0u, Model(cpus: 1).Query(0xB, 1, 0, state).Eax);
    }

    [Theory(DisplayName = "Intel's legacy leaves tell the same: one package of cores, the last cache shared, the others not")]
    [InlineData(1, 0)]
    [InlineData(2, 1)]
    [InlineData(3, 3)]
    [InlineData(16, 15)]
    public void Intel_topology(int cpus, uint lastId)
    {
        CpuidModel model = Model(cpus: cpus, intel: true);
        Assert.Equal(cpus > 1, (model.Query(1, 0, 0, state).Edx & (1u << 28)) != 0);
        Assert.Equal(0x121u | (lastId << 26), model.Query(4, 0, 0, state).Eax);
        Assert.Equal(0x163u | (lastId << 26) | (lastId << 14), model.Query(4, 1, 0, state).Eax);
        Assert.Equal(0u, model.Query(4, 2, 0, state).Eax);
        Assert.Equal(0u, model.Query(0x8000_0001, 0, 0, state).Ecx & 2);
        Assert.Equal(0u, model.Query(0x8000_0008, 0, 0, state).Ecx);
    }

    [Theory(DisplayName = "AMD's legacy leaves tell the same: one package and node, cores without threads")]
    [InlineData(1, 0x0000)]
    [InlineData(2, 0x1001)]
    [InlineData(3, 0x2002)]
    [InlineData(16, 0x400F)]
    public void Amd_topology(int cpus, uint counts)
    {
        CpuidModel model = Model(cpus: cpus);
        Assert.Equal(cpus > 1, (model.Query(1, 0, 0, state).Edx & (1u << 28)) != 0);
        Assert.Equal(cpus > 1, (model.Query(0x8000_0001, 0, 0, state).Ecx & 2) != 0);
        Assert.Equal(counts, model.Query(0x8000_0008, 0, 0, state).Ecx);
        Assert.Equal(0u, model.Query(0x8000_0001, 0, 0, state).Ecx & (1u << 22));
        uint last = (uint)cpus - 1;
        Assert.Equal(new CpuidResult(last, last, 0, 0), model.Query(0x8000_001E, 0, (int)last, state));
        Assert.Equal(default, model.Query(0x1F, 0, 0, state));
    }

    [Fact(DisplayName = "The table that implants read has each vCPU's own answers")]
    public void Tables()
    {
        CpuidModel model = Model(cpus: 4);
        foreach (int vcpu in (int[])[0, 3])
        {
            CpuidTable table = new(model, vcpu, region: null);
            table.Refresh(state);
            foreach (uint function in (uint[])[1, 0xB, 0x8000_001E])
            {
                CpuidTableEntry entry = table.Entries.ToArray().First(one => one.Functions != 0 && one.Function == function);
                Assert.Equal(model.Query(function, 0, vcpu, state), new(entry.Eax, entry.Ebx, entry.Ecx, entry.Edx));
            }
        }
    }

    [Theory(DisplayName = "Where the guest sees the host's CPUID, the caches in it are the host's, and come to an end")]
    [InlineData(4, 3)]
    [InlineData(4, 0)]
    [InlineData(0x8000_001D, 4)]
    [InlineData(4, uint.MaxValue)]
    public void Host_caches(uint function, uint caches)
    {
        const uint TypeAndLevel = 0xFF;
        CpuidModel model = new(
            HostCpu.List((leaf, index) => leaf switch
            {
                0 => new(0xD, 0, 0, 0),
                0x8000_0000 => new(0x8000_001E, 0, 0, 0),
                _ => leaf == function && index < caches ? new((index << 5) | 1, 0, 0, 0) : default,
            }),
            new CpuidConfiguration(1, 2_000_000_000, Intel: function == 4));
        uint found = 0;
        while ((model.Query(function, found, 0, state).Eax & 0x1F) != 0)
        {
            Assert.Equal(((found << 5) | 1) & TypeAndLevel, model.Query(function, found, 0, state).Eax & TypeAndLevel);
            found++;
        }

        Assert.Equal(Math.Min(caches, 16), found);
        Assert.Equal(0u, model.Query(function, found + 100, 0, state).Eax & TypeAndLevel);
    }

    [Theory(DisplayName = "Leaves that are none are zero")]
    [InlineData(0x0000_0100)]
    [InlineData(0x3FFF_FFFF)]
    [InlineData(0x4000_0002)]
    [InlineData(0x8000_0100)]
    [InlineData(0xFFFF_FFFF)]
    public void Unknown(uint function) => Assert.Equal(default, Model().Query(function, 0, 0, state));

    [Fact(DisplayName = "The hypervisor is KVM, with a stable clock")]
    public void Signature()
    {
        CpuidResult leaf = Model().Query(0x4000_0000, 0, 0, state);
        byte[] text = [.. BitConverter.GetBytes(leaf.Ebx), .. BitConverter.GetBytes(leaf.Ecx), .. BitConverter.GetBytes(leaf.Edx)];
        Assert.Equal("KVMKVMKVM\0\0\0", System.Text.Encoding.ASCII.GetString(text));
        Assert.Equal(0x4000_0001u, leaf.Eax);
        Assert.Equal((1u << 1) | (1u << 3) | (1u << 24), Model(cpus: 1).Query(0x4000_0001, 0, 0, state).Eax);
        Assert.Equal(
            (1u << 1) | (1u << 3) | (1u << 7) | (1u << 11) | (1u << 24), Model(cpus: 2).Query(0x4000_0001, 0, 0, state).Eax);
    }

    [Fact(DisplayName = "Intel gets its frequency leaves and ARCH_CAPABILITIES, AMD does not")]
    public void Intel()
    {
        CpuidModel intel = Model(intel: true);
        Assert.Equal(0x16u, intel.Query(0, 0, 0, state).Eax);
        CpuidResult crystal = intel.Query(0x15, 0, 0, state);
        Assert.Equal(Frequency, (ulong)crystal.Ecx * crystal.Ebx / crystal.Eax);
        Assert.Equal(2500u, intel.Query(0x16, 0, 0, state).Eax);
        Assert.NotEqual(0u, intel.Query(7, 0, 0, state).Edx & (1u << 29));
        Assert.Equal(default, Model().Query(0x15, 0, 0, state));
        Assert.Equal(0u, Model().Query(7, 0, 0, state).Edx & (1u << 29));
        Assert.Equal(1UL, CpuidModel.ArchCapabilities & 1);
    }

    private static CpuidModel Model(uint bits = uint.MaxValue, int cpus = 2, bool intel = false)
    {
        KvmCpuidEntry[] entries =
        [
            Entry(0, 0x10),
            Entry(1, bits, bits, bits, bits),
            Entry(4, 0xFFFF_C121, bits, bits, bits, index: 0),
            Entry(4, 0xFFFF_C163, bits, bits, bits, index: 1),
            Entry(4, 0, index: 2),
            Entry(5, bits, bits),
            Entry(7, bits, bits, bits, bits, index: 0),
            Entry(0xB, bits, bits, bits, bits, index: 0),
            Entry(0xB, bits, bits, bits, bits, index: 1),
            Entry(0xD, bits, bits, bits, bits, index: 0),
            Entry(0xD, bits, bits, bits, bits, index: 1),
            Entry(0xD, 256, 576, index: 2),
            Entry(0xD, 64, 1088, index: 5),
            Entry(0xD, 512, 1152, index: 6),
            Entry(0xD, 1024, 1664, index: 7),
            Entry(0xD, 8, 2688, index: 9),
            Entry(0x8000_0000, 0x8000_0021),
            Entry(0x8000_0001, bits, bits, bits, bits),
            Entry(0x8000_0008, bits, bits, bits, bits),
            Entry(0x8000_000A, bits, bits, bits, bits),
        ];
        return new CpuidModel(entries, new CpuidConfiguration(cpus, Frequency, intel));
    }

    private static KvmCpuidEntry Entry(uint function, uint eax, uint ebx = 0, uint ecx = 0, uint edx = 0, int index = -1) => new()
    {
        Function = function,
        Index = (uint)Math.Max(index, 0),
        Flags = index < 0 ? 0u : 1u,
        Eax = eax,
        Ebx = ebx,
        Ecx = ecx,
        Edx = edx,
    };
}
