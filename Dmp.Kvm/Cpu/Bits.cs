namespace Dmp.Kvm.Cpu;

/// <summary>RFLAGS (AMD APM vol. 2, 3.1.6).</summary>
[Flags]
public enum Rflags : ulong
{
    /// <summary>No flag.</summary>
    None = 0,

    /// <summary>CF: carry out of the highest bit.</summary>
    Carry = 1UL << 0,

    /// <summary>Bit 1 reads as one.</summary>
    AlwaysOne = 1UL << 1,

    /// <summary>PF: the low byte has an even number of ones.</summary>
    Parity = 1UL << 2,

    /// <summary>AF: carry out of bit 3.</summary>
    Adjust = 1UL << 4,

    /// <summary>ZF: the result is zero.</summary>
    Zero = 1UL << 6,

    /// <summary>SF: the result's highest bit.</summary>
    Sign = 1UL << 7,

    /// <summary>OF: the signed result does not fit.</summary>
    Overflow = 1UL << 11,

    /// <summary>TF: single step.</summary>
    Trap = 1UL << 8,

    /// <summary>IF: maskable interrupts are taken.</summary>
    Interrupt = 1UL << 9,

    /// <summary>DF: string instructions go down.</summary>
    Direction = 1UL << 10,

    /// <summary>IOPL, two bits.</summary>
    IoPrivilege = 3UL << 12,

    /// <summary>NT: nested task.</summary>
    NestedTask = 1UL << 14,

    /// <summary>RF: resume past a breakpoint.</summary>
    Resume = 1UL << 16,

    /// <summary>VM: virtual-8086 mode.</summary>
    Virtual8086 = 1UL << 17,

    /// <summary>AC: alignment check.</summary>
    AlignmentCheck = 1UL << 18,

    /// <summary>VIF.</summary>
    VirtualInterrupt = 1UL << 19,

    /// <summary>VIP.</summary>
    VirtualInterruptPending = 1UL << 20,

    /// <summary>ID: CPUID exists.</summary>
    Identification = 1UL << 21,

    /// <summary>The arithmetic flags and those above that software may change freely at any privilege level.</summary>
    UserChangeable = 0xCD5 | Trap | NestedTask | AlignmentCheck | Identification,

    /// <summary>Every flag that exists.</summary>
    All = UserChangeable | AlwaysOne | Interrupt | IoPrivilege | Resume | Virtual8086 | VirtualInterrupt | VirtualInterruptPending,
}

/// <summary>CR0 (AMD APM vol. 2, 3.1.1).</summary>
[Flags]
public enum Cr0 : ulong
{
    /// <summary>PE.</summary>
    ProtectionEnable = 1UL << 0,

    /// <summary>MP.</summary>
    MonitorCoprocessor = 1UL << 1,

    /// <summary>EM.</summary>
    Emulation = 1UL << 2,

    /// <summary>TS.</summary>
    TaskSwitched = 1UL << 3,

    /// <summary>ET.</summary>
    ExtensionType = 1UL << 4,

    /// <summary>NE.</summary>
    NumericError = 1UL << 5,

    /// <summary>WP.</summary>
    WriteProtect = 1UL << 16,

    /// <summary>AM.</summary>
    AlignmentMask = 1UL << 18,

    /// <summary>PG.</summary>
    Paging = 1UL << 31,
}

/// <summary>CR4 (AMD APM vol. 2, 3.1.3).</summary>
[Flags]
public enum Cr4 : ulong
{
    /// <summary>No bit.</summary>
    None = 0,

    /// <summary>TSD: RDTSC only at CPL 0.</summary>
    TimeStampDisable = 1UL << 2,

    /// <summary>DE.</summary>
    DebuggingExtensions = 1UL << 3,

    /// <summary>PSE.</summary>
    PageSizeExtensions = 1UL << 4,

    /// <summary>PAE.</summary>
    PhysicalAddressExtension = 1UL << 5,

    /// <summary>MCE.</summary>
    MachineCheck = 1UL << 6,

    /// <summary>PGE.</summary>
    PageGlobal = 1UL << 7,

    /// <summary>PCE: RDPMC at any CPL.</summary>
    PerformanceCounter = 1UL << 8,

    /// <summary>OSFXSR.</summary>
    FxSave = 1UL << 9,

    /// <summary>OSXMMEXCPT.</summary>
    SimdExceptions = 1UL << 10,

    /// <summary>UMIP.</summary>
    UserModeInstructionPrevention = 1UL << 11,

    /// <summary>FSGSBASE.</summary>
    FsGsBase = 1UL << 16,

    /// <summary>PCIDE.</summary>
    Pcid = 1UL << 17,

    /// <summary>OSXSAVE.</summary>
    XSave = 1UL << 18,
}

/// <summary>EFER (AMD APM vol. 2, 3.1.7).</summary>
[Flags]
public enum Efer : ulong
{
    /// <summary>SCE.</summary>
    SystemCall = 1UL << 0,

    /// <summary>LME.</summary>
    LongModeEnable = 1UL << 8,

    /// <summary>LMA.</summary>
    LongModeActive = 1UL << 10,

    /// <summary>NXE.</summary>
    NoExecuteEnable = 1UL << 11,

    /// <summary>AIBRSE.</summary>
    AutomaticIbrs = 1UL << 21,
}

/// <summary>DR6 (AMD APM vol. 2, 13.1.1.3).</summary>
[Flags]
public enum Dr6 : ulong
{
    /// <summary>The bits that read as one.</summary>
    Fixed = 0xFFFF_0FF0,

    /// <summary>BS: single step.</summary>
    SingleStep = 1UL << 14,
}

/// <summary>Exception vectors (AMD APM vol. 2, 8.2).</summary>
public enum ExceptionVector : byte
{
    /// <summary>#DE.</summary>
    DivideError = 0,

    /// <summary>#DB.</summary>
    Debug = 1,

    /// <summary>NMI, which is no exception but has a vector among them.</summary>
    NonMaskableInterrupt = 2,

    /// <summary>#BP.</summary>
    Breakpoint = 3,

    /// <summary>#OF.</summary>
    Overflow = 4,

    /// <summary>#UD.</summary>
    InvalidOpcode = 6,

    /// <summary>#NM.</summary>
    DeviceNotAvailable = 7,

    /// <summary>#DF.</summary>
    DoubleFault = 8,

    /// <summary>#TS.</summary>
    InvalidTss = 10,

    /// <summary>#NP.</summary>
    SegmentNotPresent = 11,

    /// <summary>#SS.</summary>
    Stack = 12,

    /// <summary>#GP.</summary>
    GeneralProtection = 13,

    /// <summary>#PF.</summary>
    PageFault = 14,

    /// <summary>#MF.</summary>
    FloatingPoint = 16,

    /// <summary>#AC.</summary>
    AlignmentCheck = 17,

    /// <summary>#XF.</summary>
    SimdFloatingPoint = 19,
}

/// <summary>Model-specific registers by number.</summary>
internal enum Msr : uint
{
    Tsc = 0x10,
    PlatformId = 0x17,
    ApicBase = 0x1B,
    SpecCtrl = 0x48,
    PredCmd = 0x49,
    PatchLevel = 0x8B,
    PlatformInfo = 0xCE,
    MtrrCap = 0xFE,
    ArchCapabilities = 0x10A,
    FlushCmd = 0x10B,
    MiscFeaturesEnables = 0x140,
    SysenterCs = 0x174,
    SysenterEsp = 0x175,
    SysenterEip = 0x176,
    MiscEnable = 0x1A0,
    DebugCtl = 0x1D9,
    Pat = 0x277,
    TscDeadline = 0x6E0,
    X2ApicFirst = 0x800,
    X2ApicLast = 0x8FF,
    KvmWallClock = 0x4B56_4D00,
    KvmSystemTime = 0x4B56_4D01,
    Efer = 0xC000_0080,
    Star = 0xC000_0081,
    Lstar = 0xC000_0082,
    Cstar = 0xC000_0083,
    SyscallMask = 0xC000_0084,
    FsBase = 0xC000_0100,
    GsBase = 0xC000_0101,
    KernelGsBase = 0xC000_0102,
    TscAux = 0xC000_0103,
    SystemConfiguration = 0xC001_0010,
    HardwareConfiguration = 0xC001_0015,
    NorthbridgeConfiguration = 0xC001_001F,
    InterruptPending = 0xC001_0055,
    LoadStoreConfiguration = 0xC001_1020,
    DecodeConfiguration = 0xC001_1029,
}
