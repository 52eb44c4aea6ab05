using System.Runtime.InteropServices;

namespace Dmp.Kvm.Interop;

/// <summary>Request numbers of KVM's ioctls (Linux include/uapi/linux/kvm.h; API version 12).</summary>
internal enum KvmRequest : uint
{
    GetApiVersion = 0xAE00,
    CreateVm = 0xAE01,
    CheckExtension = 0xAE03,
    GetVcpuMmapSize = 0xAE04,
    GetSupportedCpuid = 0xC008_AE05,
    CreateVcpu = 0xAE41,
    SetUserMemoryRegion = 0x4020_AE46,
    SetTssAddress = 0xAE47,
    EnableCap = 0x4068_AEA3,
    SetMsrFilter = 0x4188_AEC6,
    Run = 0xAE80,
    SetRegs = 0x4090_AE82,
    SetSregs = 0x4138_AE84,
    GetSregs = 0x8138_AE83,
    Translate = 0xC018_AE85,
    Interrupt = 0x4004_AE86,
    GetMsrs = 0xC008_AE88,
    SetMsrs = 0x4008_AE89,
    SetCpuid2 = 0x4008_AE90,
    SetSignalMask = 0x4004_AE8B,
    NonMaskableInterrupt = 0xAE9A,
    SetGuestDebug = 0x4048_AE9B,
    GetVcpuEvents = 0x8040_AE9F,
    SetVcpuEvents = 0x4040_AEA0,
    GetDebugRegs = 0x8080_AEA1,
    SetDebugRegs = 0x4080_AEA2,
    GetTscKhz = 0xAEA3,
    GetXcrs = 0x8188_AEA6,
    SetXcrs = 0x4188_AEA7,
    SetDeviceAttribute = 0x4018_AEE1,
}

/// <summary>struct kvm_device_attr.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmDeviceAttribute
{
    /// <summary>Group of a vCPU's attributes: KVM_VCPU_TSC_CTRL.</summary>
    internal const uint TscControl = 0;

    /// <summary>In that group: what the guest's TSC reads minus what the host's does, KVM_VCPU_TSC_OFFSET.</summary>
    internal const ulong TscOffset = 0;

    internal uint Flags;
    internal uint Group;
    internal ulong Attribute;
    internal ulong Address;
}

/// <summary>KVM_CAP_* numbers that Dmp asks for.</summary>
internal enum KvmCapability
{
    UserMemory = 3,
    SetGuestDebug = 23,
    ExtendedCpuid = 7,
    VcpuEvents = 41,
    DebugRegs = 50,
    XCrs = 56,
    GetTscKhz = 61,
    SyncRegs = 74,
    ImmediateExit = 136,
    UserSpaceMsr = 188,
    MsrFilter = 189,
}

/// <summary>KVM_EXIT_* numbers.</summary>
internal enum KvmExitReason : uint
{
    Unknown = 0,
    Exception = 1,
    Io = 2,
    Hypercall = 3,
    Debug = 4,
    Hlt = 5,
    Mmio = 6,
    IrqWindowOpen = 7,
    Shutdown = 8,
    FailEntry = 9,
    Interrupted = 10,
    SetTaskPriority = 11,
    InternalError = 17,
    ReadMsr = 29,
    WriteMsr = 30,
}

/// <summary>struct kvm_regs.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmRegs
{
    internal ulong Rax, Rbx, Rcx, Rdx, Rsi, Rdi, Rsp, Rbp;
    internal ulong R8, R9, R10, R11, R12, R13, R14, R15;
    internal ulong Rip, Rflags;
}

/// <summary>struct kvm_segment.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmSegment
{
    internal ulong Base;
    internal uint Limit;
    internal ushort Selector;
    internal byte Type, Present, Dpl, Db, S, L, G, Avl, Unusable, Padding;
}

/// <summary>struct kvm_dtable.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmDescriptorTable
{
    internal ulong Base;
    internal ushort Limit;
    internal fixed ushort Padding[3];
}

/// <summary>struct kvm_sregs.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmSregs
{
    internal KvmSegment Cs, Ds, Es, Fs, Gs, Ss, Tr, Ldt;
    internal KvmDescriptorTable Gdt, Idt;
    internal ulong Cr0, Cr2, Cr3, Cr4, Cr8, Efer, ApicBase;
    internal fixed ulong InterruptBitmap[4];
}

/// <summary>struct kvm_run: the fields that Dmp uses.</summary>
[StructLayout(LayoutKind.Explicit)]
internal unsafe struct KvmRun
{
    internal const ulong SyncRegs = 1;
    internal const ulong SyncSregs = 2;

    /// <summary>Whether KVM_RUN is to return as soon as an interrupt can be injected.</summary>
    [FieldOffset(0)]
    internal byte RequestInterruptWindow;

    [FieldOffset(1)]
    internal byte ImmediateExit;

    [FieldOffset(8)]
    internal KvmExitReason ExitReason;

    /// <summary>Whether KVM_INTERRUPT would be taken at once.</summary>
    [FieldOffset(12)]
    internal byte ReadyForInterrupt;

    [FieldOffset(32)]
    internal byte IoDirection;

    [FieldOffset(33)]
    internal byte IoSize;

    [FieldOffset(34)]
    internal ushort IoPort;

    [FieldOffset(36)]
    internal uint IoCount;

    [FieldOffset(40)]
    internal ulong IoDataOffset;

    /// <summary>KVM_EXIT_FAIL_ENTRY: the hardware's reason.</summary>
    [FieldOffset(32)]
    internal ulong HardwareReason;

    /// <summary>KVM_EXIT_INTERNAL_ERROR: what went wrong.</summary>
    [FieldOffset(32)]
    internal uint InternalSubError;

    [FieldOffset(32)]
    internal ulong MmioAddress;

    [FieldOffset(40)]
    internal ulong MmioData;

    [FieldOffset(48)]
    internal uint MmioLength;

    [FieldOffset(52)]
    internal byte MmioIsWrite;

    /// <summary>KVM_EXIT_X86_RDMSR and WRMSR: not 0 for #GP.</summary>
    [FieldOffset(32)]
    internal byte MsrError;

    [FieldOffset(44)]
    internal uint MsrIndex;

    [FieldOffset(48)]
    internal ulong MsrData;

    [FieldOffset(288)]
    internal ulong ValidRegs;

    [FieldOffset(296)]
    internal ulong DirtyRegs;

    [FieldOffset(304)]
    internal KvmRegs Regs;

    [FieldOffset(448)]
    internal KvmSregs Sregs;
}

/// <summary>struct kvm_userspace_memory_region.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmMemoryRegion
{
    internal uint Slot;
    internal uint Flags;
    internal ulong GuestPhysicalAddress;
    internal ulong Size;
    internal ulong UserAddress;
}

/// <summary>struct kvm_cpuid_entry2.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct KvmCpuidEntry
{
    internal uint Function, Index, Flags, Eax, Ebx, Ecx, Edx;
    internal fixed uint Padding[3];
}

/// <summary>struct kvm_msr_entry.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct KvmMsrEntry
{
    internal uint Index;
    internal uint Reserved;
    internal ulong Data;
}

/// <summary>struct kvm_vcpu_events: the part about exceptions and interrupts on their way.</summary>
[StructLayout(LayoutKind.Explicit, Size = 64)]
internal struct KvmVcpuEvents
{
    internal const uint NmiPendingIsValid = 1;
    internal const uint ShadowIsValid = 4;

    [FieldOffset(0)]
    internal byte ExceptionInjected;

    [FieldOffset(1)]
    internal byte ExceptionVector;

    [FieldOffset(3)]
    internal byte ExceptionPending;

    [FieldOffset(8)]
    internal byte InterruptInjected;

    [FieldOffset(11)]
    internal byte InterruptShadow;

    [FieldOffset(12)]
    internal byte NmiInjected;

    [FieldOffset(13)]
    internal byte NmiPending;

    [FieldOffset(14)]
    internal byte NmiMasked;

    /// <summary>Which of the optional fields are meant.</summary>
    [FieldOffset(20)]
    internal uint Flags;
}

/// <summary>struct kvm_guest_debug.</summary>
[StructLayout(LayoutKind.Explicit, Size = 72)]
internal struct KvmGuestDebug
{
    internal const uint Enable = 1 << 0;
    internal const uint SingleStep = 1 << 1;

    [FieldOffset(0)]
    internal uint Control;
}

/// <summary>struct kvm_translation.</summary>
[StructLayout(LayoutKind.Explicit, Size = 24)]
internal struct KvmTranslation
{
    [FieldOffset(0)]
    internal ulong LinearAddress;

    [FieldOffset(8)]
    internal ulong PhysicalAddress;

    [FieldOffset(16)]
    internal byte Valid;
}

/// <summary>struct kvm_enable_cap.</summary>
[StructLayout(LayoutKind.Explicit, Size = 104)]
internal struct KvmEnableCap
{
    [FieldOffset(0)]
    internal uint Capability;

    [FieldOffset(8)]
    internal ulong Argument;
}

/// <summary>struct kvm_msr_filter with one range.</summary>
[StructLayout(LayoutKind.Explicit, Size = 392)]
internal struct KvmMsrFilter
{
    internal const uint DefaultDeny = 1 << 0;
    internal const uint Read = 1 << 0;
    internal const uint Write = 1 << 1;

    [FieldOffset(0)]
    internal uint Flags;

    [FieldOffset(8)]
    internal uint RangeFlags;

    [FieldOffset(12)]
    internal uint RangeCount;

    [FieldOffset(16)]
    internal uint RangeFirst;

    [FieldOffset(24)]
    internal ulong RangeBitmap;
}

/// <summary>struct kvm_debugregs.</summary>
[StructLayout(LayoutKind.Explicit, Size = 128)]
internal unsafe struct KvmDebugRegs
{
    [FieldOffset(0)]
    internal fixed ulong Address[4];

    [FieldOffset(32)]
    internal ulong Dr6;

    [FieldOffset(40)]
    internal ulong Dr7;

    /// <summary>Copies DR0 to DR3 from here.</summary>
    internal readonly void GetAddresses(Span<ulong> destination)
    {
        for (int number = 0; number < destination.Length; number++)
        {
            destination[number] = Address[number];
        }
    }

    /// <summary>Copies DR0 to DR3 to here.</summary>
    internal void SetAddresses(ReadOnlySpan<ulong> source)
    {
        for (int number = 0; number < source.Length; number++)
        {
            Address[number] = source[number];
        }
    }
}
