using System.Numerics;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Cpu;

/// <summary>The four registers that CPUID returns.</summary>
internal readonly record struct CpuidResult(uint Eax, uint Ebx, uint Ecx, uint Edx);

/// <summary>Questions to CPUID that have the same answer.</summary>
/// <param name="Function">The lowest EAX.</param>
/// <param name="Functions">How many values of EAX from there on.</param>
/// <param name="Index">ECX, or one that stands for all.</param>
/// <param name="AnyIndex">ECX makes no difference.</param>
internal readonly record struct CpuidQuestion(uint Function, uint Functions, uint Index, bool AnyIndex);

/// <summary>What the CPUID model depends on.</summary>
/// <param name="Cpus">Number of vCPUs.</param>
/// <param name="TscFrequency">Ticks per second.</param>
/// <param name="Intel">Whether the host's vendor is Intel.</param>
internal readonly record struct CpuidConfiguration(int Cpus, ulong TscFrequency, bool Intel);

/// <summary>
/// The CPUID the guest kernel sees: what the host's KVM supports, without what a deprivileged kernel cannot have, with what Dmp
/// emulates, and with the "not affected" bits that make mitigations (page-table isolation above all) needless: the guest cannot
/// reach anything of the host that they would protect. User code executes CPUID natively and sees the host, so vendor, family and
/// vector extensions are never changed.
/// </summary>
internal sealed class CpuidModel
{
    /// <summary>Width of physical addresses that page tables may hold (see <see cref="Memory.PageWalk"/>).</summary>
    private const uint MaximumPhysicalAddressBits = 46;

    private const uint HypervisorLeaf = 0x4000_0000;
    private const uint KvmFeaturesLeaf = 0x4000_0001;
    private const uint ExtendedLeaf = 0x8000_0000;
    private const uint PowerLeaf = 0x8000_0007;
    private const uint InvariantTsc = 1 << 8;
    private const uint AmdCacheLeaf = 0x8000_001D;
    private const uint AmdTopologyLeaf = 0x8000_001E;
    private const int CoresShift = 26;
    private const int AmdIdBitsShift = 12;
    private const uint IndexIsSignificant = 1;
    private const int KeyFunctionShift = 32;
    private const int XSaveLegacyAndHeader = 576;
    private const int XSaveAlignment = 64;

    private readonly Dictionary<ulong, CpuidResult> leaves = [];
    private readonly HashSet<uint> indexed = [];
    private readonly CpuidConfiguration configuration;
    private readonly uint maximumBasic;
    private readonly uint maximumExtended;

    internal CpuidModel(ReadOnlySpan<KvmCpuidEntry> supported, CpuidConfiguration configuration)
    {
        this.configuration = configuration;
        foreach (KvmCpuidEntry entry in supported)
        {
            bool hasIndex = (entry.Flags & IndexIsSignificant) != 0;
            CpuidResult raw = new(entry.Eax, entry.Ebx, entry.Ecx, entry.Edx);
            if (hasIndex)
            {
                _ = indexed.Add(entry.Function);
            }

            leaves[Key(entry.Function, hasIndex ? entry.Index : 0)] = raw;
        }

        SupportedXcr0 = XSaveFeatures();
        Mask();
        maximumBasic = Raw(0).Eax;
        maximumExtended = Raw(ExtendedLeaf).Eax;
    }

    /// <summary>The XCR0 bits the guest may set.</summary>
    internal ulong SupportedXcr0 { get; }

    /// <summary>Whether the model has x2APIC, PCID and so on is fixed; this one differs between hosts.</summary>
    internal bool HasFsGsBase => (Raw(7).Ebx & 1) != 0;

    /// <summary>Whether the guest may set CR4.UMIP.</summary>
    internal bool HasUmip => (Raw(7).Ecx & Leaf7Ecx.Umip) != 0;

    /// <summary>Bits of ARCH_CAPABILITIES that say "not affected" (Intel SDM vol. 4, table 2-2).</summary>
    internal static ulong ArchCapabilities =>
        (1UL << 0) // RDCL_NO: no Meltdown
        | (1UL << 1) // IBRS_ALL
        | (1UL << 3) // SKIP_L1DFL_VMENTRY
        | (1UL << 4) // SSB_NO
        | (1UL << 5) // MDS_NO
        | (1UL << 6) // PSCHANGE_MC_NO
        | (1UL << 8) // TAA_NO
        | (1UL << 13) // SBDR_SSDP_NO
        | (1UL << 14) // FBSDP_NO
        | (1UL << 15) // PSDP_NO
        | (1UL << 20) // BHI_NO
        | (1UL << 24) // PBRSB_NO
        | (1UL << 26) // GDS_NO
        | (1UL << 27) // RFDS_NO
        | (1UL << 62); // ITS_NO

    /// <summary>What CPUID returns.</summary>
    /// <param name="function">EAX.</param>
    /// <param name="index">ECX.</param>
    /// <param name="vcpu">Index of the vCPU: its APIC id.</param>
    /// <param name="state">For the bits that follow CR4 and XCR0.</param>
    internal CpuidResult Query(uint function, uint index, int vcpu, CpuState state)
    {
        if (!IsWithinRange(function))
        {
            // Beyond the last basic leaf a processor returns that leaf's data on Intel, zeros on AMD.
            return default;
        }

        CpuidResult result = indexed.Contains(function) ? Raw(function, index) : Raw(function);
        uint apicId = (uint)vcpu;
        return function switch
        {
            1 => result with
            {
                Ebx = (result.Ebx & 0x0000_FFFF) | ((uint)configuration.Cpus << 16) | (apicId << 24),
                Ecx = (state.Cr4 & Cr4.XSave) != 0 ? result.Ecx | Leaf1Ecx.OsXSave : result.Ecx,
            },
            4 => Cache(result, LastIdInPackage << CoresShift),
            0xB => Topology(index, apicId),
            0xD when index == 0 => result with { Ebx = StandardSize(state.Xcr0), Ecx = StandardSize(SupportedXcr0) },
            0xD when index == 1 => result with { Ebx = CompactedSize(state.Xcr0) },
            AmdCacheLeaf => Cache(result, 0),
            AmdTopologyLeaf when !configuration.Intel => new(apicId, apicId, 0, 0),
            _ => result,
        };
    }

    /// <summary>
    /// All questions but those about further levels of the topology, which nobody asks. Where several have a question among them, the
    /// first one counts.
    /// </summary>
    internal IEnumerable<CpuidQuestion> Questions()
    {
        const uint TopologyLeaf = 0xB;
        ulong next = 0;
        foreach (uint function in leaves.Keys.Select(FunctionOf).Concat(indexed).Append(1u).Where(IsWithinRange).Distinct().Order())
        {
            if (next < function)
            {
                yield return new CpuidQuestion((uint)next, function - (uint)next, 0, AnyIndex: true);
            }

            uint last = 0;
            foreach (uint index in leaves.Keys.Where(key => indexed.Contains(function) && FunctionOf(key) == function)
                .Select(key => (uint)key).Order())
            {
                last = index + 1;
                yield return new CpuidQuestion(function, 1, index, AnyIndex: false);
            }

            if (function != TopologyLeaf)
            {
                yield return new CpuidQuestion(function, 1, last, AnyIndex: true);
            }

            next = function + 1UL;
        }

        if (next <= uint.MaxValue)
        {
            yield return new CpuidQuestion((uint)next, (uint)((1UL << KeyFunctionShift) - next), 0, AnyIndex: true);
        }
    }

    /// <summary>The entries for KVM, for hosts where the guest's CPUID is executed by hardware with KVM's answers.</summary>
    internal KvmCpuidEntry[] ForKvm(int vcpu)
    {
        CpuState state = new() { Xcr0 = SupportedXcr0, Cr4 = Cr4.XSave };
        return [.. leaves.Keys.Order().Select(key =>
        {
            uint function = (uint)(key >> 32);
            uint index = (uint)key;
            CpuidResult result = Query(function, index, vcpu, state);
            return new KvmCpuidEntry
            {
                Function = function,
                Index = index,
                Flags = indexed.Contains(function) ? IndexIsSignificant : 0,
                Eax = result.Eax,
                Ebx = result.Ebx,
                Ecx = result.Ecx,
                Edx = result.Edx,
            };
        })];
    }

    private bool IsWithinRange(uint function) => function switch
    {
        < HypervisorLeaf => function <= maximumBasic,
        < ExtendedLeaf => true,
        _ => function <= maximumExtended,
    };

    private static uint FunctionOf(ulong key) => (uint)(key >> KeyFunctionShift);

    private static ulong Key(uint function, uint index) => ((ulong)function << KeyFunctionShift) | index;

    private CpuidResult Raw(uint function, uint index = 0) => leaves.GetValueOrDefault(Key(function, index));

    private void Mask()
    {
        Edit(1, r => new(
            r.Eax,
            r.Ebx & 0x0000_FFFF,
            (r.Ecx & ~Leaf1Ecx.Hidden) | Leaf1Ecx.Emulated,
            (r.Edx & ~Leaf1Edx.Hidden) | (HasManyCores ? Leaf1Edx.HyperThreading : 0)));
        Edit(7, r => new(r.Eax, (r.Ebx & ~Leaf7Ebx.Hidden) | Leaf7Ebx.Invpcid, r.Ecx & Leaf7Ecx.Kept, Leaf7EdxFor(r.Edx)));
        Edit(7, r => new(r.Eax & Leaf7Sub1Eax.Kept, 0, 0, 0), index: 1);
        Edit(7, _ => default, index: 2);
        foreach (uint hidden in (ReadOnlySpan<uint>)[5, 6, 0xA, 0xF, 0x10, 0x12, 0x14, 0x1F, 0x8000_000A, 0x8000_001B, 0x8000_001F,
            0x8000_0020, 0x8000_0022, 0x8000_0026])
        {
            foreach (ulong key in leaves.Keys.Where(k => k >> 32 == hidden).ToArray())
            {
                _ = leaves.Remove(key);
            }
        }

        MaskXSave();
        uint coresNotThreads = HasManyCores && !configuration.Intel ? ExtendedEcx.CmpLegacy : 0;
        Edit(0x8000_0001, r => new(
            r.Eax, r.Ebx, (r.Ecx & ~ExtendedEcx.Hidden) | coresNotThreads, r.Edx & ~ExtendedEdx.Hidden));
        Edit(0x8000_0008, r => new(
            48u << 8 | Math.Min(r.Eax & 0xFF, MaximumPhysicalAddressBits),
            (r.Ebx & AddressSizeEbx.ClZero) | (configuration.Intel ? 0 : AddressSizeEbx.SsbNo | AddressSizeEbx.BtcNo),
            configuration.Intel ? 0 : (uint)(configuration.Cpus - 1) | (ApicIdBits << AmdIdBitsShift),
            0));
        if (Raw(ExtendedLeaf).Eax >= PowerLeaf)
        {
            // All clocks of the machine rest on it, and the guest's kernel asks for it before it trusts the TSCs of several processors.
            CpuidResult power = Raw(PowerLeaf);
            leaves[Key(PowerLeaf, 0)] = power with { Edx = power.Edx | InvariantTsc };
        }

        if (!configuration.Intel && Raw(ExtendedLeaf).Eax >= AmdTopologyLeaf)
        {
            leaves[Key(AmdTopologyLeaf, 0)] = default; // One answer for each vCPU.
        }

        if (!configuration.Intel && Raw(ExtendedLeaf).Eax >= 0x8000_0021)
        {
            Edit(0x8000_0021, r => new(
                (r.Eax & Extended21Eax.Kept) | Extended21Eax.SrsoNo, 0, Extended21Ecx.TsaSqNo | Extended21Ecx.TsaL1No, 0));
        }

        DescribeHypervisor();
        if (configuration.Intel)
        {
            DescribeFrequency();
        }

        indexed.UnionWith([7, 0xB, 0xD]);
    }

    // SSBD, STIBP and the like need MSRs that a deprivileged kernel cannot reach; Intel's "not affected" bits come by an MSR.
    private uint Leaf7EdxFor(uint edx) => (edx & Leaf7Edx.Kept) | (configuration.Intel ? Leaf7Edx.ArchCapabilities : 0);

    private void MaskXSave()
    {
        const uint Xsaves = 1u << 3;
        const uint Xfd = 1u << 4;
        Edit(0xD, r => new((uint)SupportedXcr0, r.Ebx, r.Ecx, (uint)(SupportedXcr0 >> 32)));
        Edit(0xD, r => new(r.Eax & ~(Xsaves | Xfd), 0, 0, 0), index: 1);
        for (uint component = 2; component < 63; component++)
        {
            if ((SupportedXcr0 & (1UL << (int)component)) == 0)
            {
                _ = leaves.Remove(Key(0xD, component));
            }
        }
    }

    /// <summary>
    /// KVM's signature with the features we have: the clock (so that nothing is calibrated), no I/O delays, and the hypercalls of several
    /// vCPUs (see <see cref="Emulation.Hypercalls"/>).
    /// </summary>
    private void DescribeHypervisor()
    {
        const uint NoIoDelay = 1 << 1;
        const uint ClockSource2 = 1 << 3;
        const uint EndsOfHalts = 1 << 7;
        const uint IpisToMany = 1 << 11;
        const uint ClockStable = 1 << 24;
        leaves[Key(HypervisorLeaf, 0)] = new(KvmFeaturesLeaf, 0x4B4D_564B, 0x564B_4D56, 0x0000_004D); // "KVMKVMKVM"
        leaves[Key(KvmFeaturesLeaf, 0)] = new(
            NoIoDelay | ClockSource2 | ClockStable | (HasManyCores ? EndsOfHalts | IpisToMany : 0), 0, 0, 0);
    }

    /// <summary>TSC frequency in leaves 0x15 and 0x16, which only Intel processors have.</summary>
    private void DescribeFrequency()
    {
        const uint CrystalHertz = 1_000_000;
        uint megahertz = (uint)(configuration.TscFrequency / CrystalHertz);
        Edit(0, r => r with { Eax = Math.Max(r.Eax, 0x16) });
        leaves[Key(0x15, 0)] = new(1, megahertz, CrystalHertz, 0);
        leaves[Key(0x16, 0)] = new(megahertz, megahertz, 100, 0);
    }

    private void Edit(uint function, Func<CpuidResult, CpuidResult> change, uint index = 0)
    {
        ulong key = Key(function, index);
        if (leaves.TryGetValue(key, out CpuidResult raw))
        {
            leaves[key] = change(raw);
        }
    }

    private ulong XSaveFeatures()
    {
        // x87, SSE, AVX, AVX-512 (three components). MPX, PKRU and AMX are not offered.
        const ulong Offered = 0b1110_0111;
        CpuidResult leaf = Raw(0xD);
        return (leaf.Eax | ((ulong)leaf.Edx << 32)) & Offered;
    }

    private bool HasManyCores => configuration.Cpus > 1;

    /// <summary>How many bits of an APIC id tell the cores of the package apart.</summary>
    private uint ApicIdBits => (uint)(32 - BitOperations.LeadingZeroCount((uint)configuration.Cpus - 1));

    private uint LastIdInPackage => (1u << (int)ApicIdBits) - 1;

    // SMT level and core level: every vCPU is a core of one package.
    private CpuidResult Topology(uint index, uint apicId)
    {
        const uint SmtLevel = 1 << 8;
        const uint CoreLevel = 2 << 8;
        return index switch
        {
            0 => new(0, 1, SmtLevel, apicId),
            1 => new(ApicIdBits, (uint)configuration.Cpus, CoreLevel | 1, apicId),
            _ => new(0, 0, index, apicId),
        };
    }

    // The last level is the package's, the others are each core's own.
    private CpuidResult Cache(CpuidResult host, uint cores)
    {
        const uint Type = 0x1F;
        const int LevelShift = 5;
        const uint LevelMask = 7;
        const uint LastLevel = 3;
        const int SharingShift = 14;
        const uint NotAboutSharing = (1u << SharingShift) - 1;
        if ((host.Eax & Type) == 0)
        {
            return host; // No more caches.
        }

        uint sharing = ((host.Eax >> LevelShift) & LevelMask) >= LastLevel ? LastIdInPackage << SharingShift : 0;
        return host with { Eax = (host.Eax & NotAboutSharing) | sharing | cores };
    }

    private uint StandardSize(ulong xcr0)
    {
        uint size = XSaveLegacyAndHeader;
        for (uint component = 2; component < 63; component++)
        {
            if ((xcr0 & SupportedXcr0 & (1UL << (int)component)) != 0)
            {
                CpuidResult leaf = Raw(0xD, component);
                size = Math.Max(size, leaf.Eax + leaf.Ebx);
            }
        }

        return size;
    }

    private uint CompactedSize(ulong xcr0)
    {
        uint size = XSaveLegacyAndHeader;
        for (uint component = 2; component < 63; component++)
        {
            if ((xcr0 & SupportedXcr0 & (1UL << (int)component)) != 0)
            {
                CpuidResult leaf = Raw(0xD, component);
                bool aligned = (leaf.Ecx & 2) != 0;
                size = (aligned ? (size + XSaveAlignment - 1) & ~(uint)(XSaveAlignment - 1) : size) + leaf.Eax;
            }
        }

        return size;
    }

    private static class Leaf1Ecx
    {
        internal const uint OsXSave = 1u << 27;

        // MONITOR, DS_CPL, VMX, SMX, EIST, TM2, CNXT-ID, SDBG, PDCM, DCA, OSXSAVE (which follows CR4)
        internal const uint Hidden = (1u << 3) | (1u << 4) | (1u << 5) | (1u << 6) | (1u << 7) | (1u << 8) | (1u << 10) | (1u << 11)
            | (1u << 15) | (1u << 18) | OsXSave;

        // PCID, x2APIC, TSC deadline, hypervisor
        internal const uint Emulated = (1u << 17) | (1u << 21) | (1u << 24) | (1u << 31);
    }

    private static class Leaf1Edx
    {
        // Several processors in the package; not that they are threads.
        internal const uint HyperThreading = 1u << 28;

        // VME, DE, MCE, MCA, MTRR, DS, ACPI thermal, HTT, TM, PBE
        internal const uint Hidden = (1u << 1) | (1u << 2) | (1u << 7) | (1u << 12) | (1u << 14) | (1u << 21) | (1u << 22)
            | HyperThreading | (1u << 29) | (1u << 31);
    }

    private static class Leaf7Ebx
    {
        internal const uint Invpcid = 1u << 10;

        // TSC_ADJUST, SGX, HLE, SMEP, RTM, RDT-M, MPX, RDT-A, SMAP, PT
        internal const uint Hidden = (1u << 1) | (1u << 2) | (1u << 4) | (1u << 7) | (1u << 11) | (1u << 12) | (1u << 14) | (1u << 15)
            | (1u << 20) | (1u << 25);
    }

    private static class Leaf7Ecx
    {
        internal const uint Umip = 1u << 2;

        // AVX512_VBMI, UMIP, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ, RDPID, MOVDIRI, MOVDIR64B
        internal const uint Kept = (1u << 1) | Umip | (1u << 6) | (1u << 8) | (1u << 9) | (1u << 10) | (1u << 11) | (1u << 12)
            | (1u << 14) | (1u << 22) | (1u << 27) | (1u << 28);
    }

    private static class Leaf7Edx
    {
        internal const uint ArchCapabilities = 1u << 29;

        // AVX512_4VNNIW, AVX512_4FMAPS, FSRM, AVX512_VP2INTERSECT, SERIALIZE, AVX512_FP16
        internal const uint Kept = (1u << 2) | (1u << 3) | (1u << 4) | (1u << 8) | (1u << 14) | (1u << 23);
    }

    private static class Leaf7Sub1Eax
    {
        // AVX_VNNI, AVX512_BF16, FZRM, FSRS, FSRC, AVX_IFMA
        internal const uint Kept = (1u << 4) | (1u << 5) | (1u << 10) | (1u << 11) | (1u << 12) | (1u << 23);
    }

    private static class ExtendedEcx
    {
        // The several processors of the package are cores.
        internal const uint CmpLegacy = 1u << 1;

        // CmpLegacy, SVM, ExtApicSpace, OSVW, IBS, SKINIT, WDT, LWP, TCE, NodeId, TopoExt, PerfCtr core/NB, DBX, PerfTsc, PCX_L2I, MONITORX
        internal const uint Hidden = CmpLegacy | (1u << 2) | (1u << 3) | (1u << 9) | (1u << 10) | (1u << 12) | (1u << 13) | (1u << 15)
            | (1u << 17) | (1u << 19) | (1u << 22) | (1u << 23) | (1u << 24) | (1u << 26) | (1u << 27) | (1u << 28) | (1u << 29);
    }

    private static class ExtendedEdx
    {
        // VME, DE, MCE, MTRR, MCA (copies of leaf 1 on AMD)
        internal const uint Hidden = (1u << 1) | (1u << 2) | (1u << 7) | (1u << 12) | (1u << 14);
    }

    private static class AddressSizeEbx
    {
        internal const uint ClZero = 1u << 0;
        internal const uint SsbNo = 1u << 26;
        internal const uint BtcNo = 1u << 29;
    }

    private static class Extended21Eax
    {
        internal const uint SrsoNo = 1u << 29;

        // NoNestedDataBp, LfenceAlwaysSerializing, NullSelectClearsBase, AutomaticIBRS
        internal const uint Kept = (1u << 0) | (1u << 2) | (1u << 6) | (1u << 8);
    }

    private static class Extended21Ecx
    {
        internal const uint TsaSqNo = 1u << 1;
        internal const uint TsaL1No = 1u << 2;
    }
}
