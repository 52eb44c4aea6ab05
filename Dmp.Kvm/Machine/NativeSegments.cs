using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Monitor;

namespace Dmp.Kvm.Machine;

/// <summary>Segments of code that runs at CPL 0 on descriptors of its own (AMD APM vol. 2, 4.5 and 14.1.3).</summary>
internal static class NativeSegments
{
    private const byte TypeCode = 0xB;
    private const byte TypeData = 0x3;
    private const byte TypeLdt = 0x2;
    private const byte TypeBusyTss = 0xB;
    private const int RealModeShift = 4;
    private const int RplMask = 3;
    private const uint LargestByteLimit = 0xF_FFFF;

    /// <summary>Limit of TR and of the descriptor tables after reset.</summary>
    internal const ushort LimitAfterReset = ushort.MaxValue;

    /// <summary>What a reset leaves in TR and LDTR; nothing in the others.</summary>
    internal static KvmSregs AfterReset(ulong apicBase) => new()
    {
        Tr = Task(CpuState.NullSelector, 0, LimitAfterReset), Ldt = LdtAfterReset(), ApicBase = apicBase,
    };

    /// <summary>All of them where a processor begins in real mode.</summary>
    /// <param name="codeSelector">CS.</param>
    /// <param name="apicBase">IA32_APIC_BASE, which KVM has among them.</param>
    internal static KvmSregs RealMode(ushort codeSelector, ulong apicBase)
    {
        KvmSregs sregs = AfterReset(apicBase);
        sregs.Cr0 = (ulong)Cr0.ExtensionType;
        sregs.Cs = RealModeCode(codeSelector);
        sregs.Ds = sregs.Es = sregs.Fs = sregs.Gs = sregs.Ss = RealModeData(CpuState.NullSelector);
        sregs.Gdt = sregs.Idt = new KvmDescriptorTable { Limit = LimitAfterReset };
        return sregs;
    }

    /// <summary>What real mode makes of a selector in CS.</summary>
    internal static KvmSegment RealModeCode(ushort selector) => RealMode(selector, TypeCode);

    /// <summary>What real mode makes of a selector in another segment register.</summary>
    internal static KvmSegment RealModeData(ushort selector) => RealMode(selector, TypeData);

    /// <summary>32-bit code over all 4 GiB.</summary>
    internal static KvmSegment FlatCode(ushort selector) => Flat(selector, TypeCode);

    /// <summary>32-bit data over all 4 GiB.</summary>
    internal static KvmSegment FlatData(ushort selector) => Flat(selector, TypeData);

    /// <summary>TR. It is never unusable: a processor has one after reset, too.</summary>
    internal static KvmSegment Task(ushort selector, ulong start, uint limit) => new()
    {
        Base = start, Limit = limit, Selector = selector, Type = TypeBusyTss, Present = 1, G = Granularity(limit),
    };

    /// <summary>LDTR after reset.</summary>
    internal static KvmSegment LdtAfterReset() => new() { Limit = ushort.MaxValue, Type = TypeLdt, Present = 1 };

    /// <summary>
    /// What stands for a segment when the same code goes on at CPL 3 in 64-bit mode: one that can be loaded there, with the base.
    /// </summary>
    internal static KvmSegment Deprivileged(in KvmSegment segment, bool keepBase) =>
        Flat(segment, keepBase ? segment.Base : 0, privilege: RplMask);

    /// <summary>
    /// The way back. In 64-bit mode a processor keeps limit and rights of what was loaded earlier; they are taken to be those of all
    /// kernels, 4 GiB from 0.
    /// </summary>
    internal static KvmSegment Privileged(in KvmSegment segment) => Flat(segment, segment.Base, privilege: 0);

    private static KvmSegment Flat(in KvmSegment segment, ulong start, byte privilege)
    {
        int selector = segment.Selector & ~RplMask;
        return segment.Unusable != 0 || selector == CpuState.NullSelector
            ? new KvmSegment { Base = start, Selector = segment.Selector, Unusable = 1 }
            : MonitorSegments.Data((ushort)(selector | privilege), privilege) with { Base = start };
    }

    private static KvmSegment RealMode(ushort selector, byte type) => new()
    {
        Base = (ulong)selector << RealModeShift, Limit = ushort.MaxValue, Selector = selector, Type = type, Present = 1, S = 1,
    };

    private static KvmSegment Flat(ushort selector, byte type) => new()
    {
        Limit = uint.MaxValue, Selector = selector, Type = type, Present = 1, S = 1, Db = 1, G = 1,
    };

    private static byte Granularity(uint limit) => limit > LargestByteLimit ? (byte)1 : (byte)0;
}
