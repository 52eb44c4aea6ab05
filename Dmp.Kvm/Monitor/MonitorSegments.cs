using System.Buffers.Binary;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Monitor;

/// <summary>
/// The segments of the real GDT. The guest's own GDT is only ever read by us; what the hardware loads comes from here. The user
/// selectors are those of Linux, because guest code reads CS and SS natively at CPL 3.
/// </summary>
internal static class MonitorSegments
{
    /// <summary>Code of the monitor, CPL 0.</summary>
    internal const ushort MonitorCodeSelector = 0x08;

    /// <summary>32-bit user code (compatibility mode).</summary>
    internal const ushort CompatibilityCodeSelector = 0x23;

    /// <summary>User data and stack.</summary>
    internal const ushort UserDataSelector = 0x2B;

    /// <summary>64-bit user code: guest kernel and guest user both run in it.</summary>
    internal const ushort UserCodeSelector = 0x33;

    private const int FirstTssEntry = 8;
    private const int EntriesPerTss = 2;
    private const int DescriptorSize = 8;
    private const byte TypeCode = 0xB;
    private const byte TypeData = 0x3;
    private const byte TypeBusyTss = 0xB;
    private const byte TypeAvailableTss = 0x9;

    /// <summary>Entries of the GDT for a number of vCPUs: the segments, and a TSS (two entries) for each vCPU.</summary>
    internal static int GdtEntries(int vcpus) => FirstTssEntry + (vcpus * EntriesPerTss);

    /// <summary>64-bit code at a privilege level.</summary>
    internal static KvmSegment Code(ushort selector, byte privilege) => new()
    {
        Limit = uint.MaxValue, Selector = selector, Type = TypeCode, Present = 1, Dpl = privilege, S = 1, L = 1, G = 1,
    };

    /// <summary>32-bit user code.</summary>
    internal static KvmSegment CompatibilityCode() => new()
    {
        Limit = uint.MaxValue, Selector = CompatibilityCodeSelector, Type = TypeCode, Present = 1, Dpl = 3, S = 1, Db = 1, G = 1,
    };

    /// <summary>Flat data at a privilege level.</summary>
    internal static KvmSegment Data(ushort selector, byte privilege) => new()
    {
        Limit = uint.MaxValue, Selector = selector, Type = TypeData, Present = 1, Dpl = privilege, S = 1, Db = 1, G = 1,
    };

    /// <summary>A vCPU's task state segment.</summary>
    internal static KvmSegment Tss(int vcpu, ulong address, uint limit) => new()
    {
        Base = address, Limit = limit, Selector = (ushort)TssSelector(vcpu), Type = TypeBusyTss, Present = 1,
    };

    /// <summary>Writes the GDT.</summary>
    /// <param name="gdt">Where to; zeroed memory.</param>
    /// <param name="vcpus">Number of vCPUs.</param>
    /// <param name="tssLimit">Limit of each TSS.</param>
    internal static void WriteGdt(Span<byte> gdt, int vcpus, uint tssLimit)
    {
        WriteFlat(gdt, Code(MonitorCodeSelector, 0));
        WriteFlat(gdt, CompatibilityCode());
        WriteFlat(gdt, Data(UserDataSelector, 3));
        WriteFlat(gdt, Code(UserCodeSelector, 3));
        for (int vcpu = 0; vcpu < vcpus; vcpu++)
        {
            ulong address = Memory.MachineLayout.MonitorBase + Memory.MachineLayout.VcpuBlock(vcpu)
                + Memory.MachineLayout.TssOffset;
            KvmSegment tss = Tss(vcpu, address, tssLimit);
            tss.Type = TypeAvailableTss;
            BinaryPrimitives.WriteUInt64LittleEndian(gdt[TssSelector(vcpu)..], Encode(tss));
            BinaryPrimitives.WriteUInt64LittleEndian(gdt[(TssSelector(vcpu) + DescriptorSize)..], address >> 32);
        }
    }

    private static int TssSelector(int vcpu) => (FirstTssEntry + (vcpu * EntriesPerTss)) * DescriptorSize;

    private static void WriteFlat(Span<byte> gdt, in KvmSegment segment) =>
        BinaryPrimitives.WriteUInt64LittleEndian(gdt[(segment.Selector & ~7)..], Encode(segment));

    // Layout of a segment descriptor: AMD APM vol. 2, 4.7.
    private static ulong Encode(in KvmSegment segment)
    {
        ulong limit = segment.G != 0 ? segment.Limit >> 12 : segment.Limit;
        ulong access = segment.Type | ((ulong)segment.S << 4) | ((ulong)segment.Dpl << 5) | ((ulong)segment.Present << 7);
        ulong flags = ((ulong)segment.L << 1) | ((ulong)segment.Db << 2) | ((ulong)segment.G << 3);
        return (limit & 0xFFFF) | ((segment.Base & 0xFF_FFFF) << 16) | (access << 40) | (((limit >> 16) & 0xF) << 48)
            | (flags << 52) | (((segment.Base >> 24) & 0xFF) << 56);
    }
}
