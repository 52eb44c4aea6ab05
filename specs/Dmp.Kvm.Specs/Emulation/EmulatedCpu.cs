using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Emulation;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;
using Dmp.Kvm.Specs.Devices;
using Dmp.Kvm.Specs.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Specs.Emulation;

/// <summary>A virtual CPU without KVM: 4 MiB of RAM, a kernel page range, a user page range, descriptor tables as Linux has them.</summary>
internal sealed class EmulatedCpu : IDisposable
{
    internal const ulong KernelBase = 0xFFFF_FFFF_8000_0000;
    internal const ulong UserBase = 0x40_0000;
    internal const ulong KernelCode = KernelBase + 0x1000;
    internal const ulong KernelData = KernelBase + 0x2000;
    internal const ulong KernelStack = KernelBase + 0x4000;
    internal const ulong Gdt = KernelBase + 0x5000;
    internal const ulong Idt = KernelBase + 0x6000;
    internal const ulong Tss = KernelBase + 0x7000;
    internal const ulong Rsp0 = KernelBase + 0x9000;
    internal const ulong Ist1 = KernelBase + 0xB000;
    internal const ulong UserStack = UserBase + 0x8000;
    internal const ulong Handlers = KernelBase + 0xC000;

    /// <summary>The page of the local APIC, and the same page read-only.</summary>
    internal const ulong LocalApic = KernelBase + (2 * Paging.LargePageSize);

    internal const ulong ReadOnlyLocalApic = KernelBase + (3 * Paging.LargePageSize);

    private const ulong Leaf = (ulong)(PageEntry.Present | PageEntry.Writable | PageEntry.Large | PageEntry.Accessed | PageEntry.Dirty);

    private readonly GuestMemory memory = GuestMemory.Create(4 << 20);
    private readonly SensitiveInstructions emulator;
    private readonly MmioInstructions mmio;
    private readonly InstructionFetcher fetcher;

    internal EmulatedCpu()
    {
        GuestTables tables = new(memory);
        tables.Map(KernelBase, 2, Leaf);
        tables.Map(UserBase, 2, Paging.LargePageSize | Leaf | (ulong)PageEntry.User);
        tables.Map(LocalApic, 2, DeviceLayout.LocalApicBase | Leaf);
        tables.Map(ReadOnlyLocalApic, 2, (DeviceLayout.LocalApicBase | Leaf) & ~(ulong)PageEntry.Writable);
        State.Cr3 = GuestTables.Root;
        CodePages code = new(memory);
        Access = new GuestAccess(memory, code, State, frame => code.Remove(frame, out _));
        Events = new EventDelivery(Registers, State, Access);
        fetcher = new InstructionFetcher(Access);
        Chipset chipset = new(4, Clock, Machine, new SerialConsole(), memory.Size, null);
        Context = new EmulationContext
        {
            Index = 0,
            Vcpu = Registers,
            State = State,
            Access = Access,
            Memory = memory,
            Tlb = new VirtualTlb(new FakeShadowMemory(), memory.FrameLimit, MonitorImage.Pml4Slot, MonitorImage.Pml4Entry),
            Events = Events,
            Chipset = chipset,
            Cpuid = new CpuidModel(Cpuid, new CpuidConfiguration(1, Clock.TscFrequency, false)),
            Clock = Clock,
            ParavirtualClock = new ParavirtualClock(memory, Clock),
            UnownedMsrs = new UnownedMsrs(),
        };
        emulator = new SensitiveInstructions(Context);
        mmio = new MmioInstructions(Context);
        Registers.Regs.Rsp = KernelStack;
        WriteDescriptors();
    }

    internal CpuState State { get; } = new();

    internal FakeRegisters Registers { get; } = new();

    internal GuestAccess Access { get; }

    internal EventDelivery Events { get; }

    internal EmulationContext Context { get; }

    internal VirtualClock Clock { get; } = new();

    internal RecordingMachine Machine { get; } = new();

    private static KvmCpuidEntry[] Cpuid =>
    [
        new() { Function = 0, Eax = 0xD },
        new() { Function = 1, Ecx = 1u << 26 },
        new() { Function = 7, Flags = 1, Ebx = 1, Ecx = 1u << 2 },
        new() { Function = 0xD, Flags = 1, Eax = 7 },
        new() { Function = 0x8000_0000, Eax = 0x8000_0008 },
    ];

    /// <summary>Executes machine code of one instruction at RIP; RIP goes behind it when it is done.</summary>
    internal Outcome Execute(params byte[] bytes) =>
        Execute(bytes, instruction => State.UserMode ? emulator.ExecuteForUser(instruction) : emulator.Execute(instruction));

    /// <summary>The same for an instruction whose memory operand is a device register.</summary>
    internal Outcome ExecuteMmio(params byte[] bytes) => Execute(bytes, instruction => mmio.Execute(instruction));

    private Outcome Execute(byte[] bytes, Func<Instruction, Outcome> execute)
    {
        ulong at = State.UserMode ? UserBase + 0x1000 : KernelCode;
        memory.Slice(new GuestPhysicalAddress(State.UserMode ? Paging.LargePageSize + 0x1000 : 0x1000), 16).Clear();
        bytes.CopyTo(memory.Slice(new GuestPhysicalAddress(State.UserMode ? Paging.LargePageSize + 0x1000 : 0x1000), bytes.Length));
        Registers.Regs.Rip = at;
        Assert.True(fetcher.TryFetch(at, compatibility: false, out Instruction instruction, out _));
        Outcome outcome = execute(instruction);
        if (outcome is Outcome.Done or Outcome.Halt)
        {
            Registers.Regs.Rip = instruction.NextIP;
        }

        return outcome;
    }

    internal Outcome EnterSystemCall() => emulator.EnterSystemCall();

    internal void Push(params ulong[] words)
    {
        foreach (ulong word in words)
        {
            Registers.Regs.Rsp -= sizeof(ulong);
            Assert.True(Access.TryWrite(Registers.Regs.Rsp, word, PageAccess.Read));
        }
    }

    internal ulong Word(ulong address)
    {
        Assert.True(Access.TryRead(address, PageAccess.Read, out ulong value));
        return value;
    }

    internal void Write(ulong address, ulong value) => Assert.True(Access.TryWrite(address, value, PageAccess.Read));

    /// <summary>An interrupt gate.</summary>
    internal void SetGate(int vector, int privilege = 0, int stack = 0, bool trap = false)
    {
        ulong target = Handlers + ((ulong)vector * 16);
        ulong type = trap ? 0xFUL : 0xEUL;
        Write(Idt + ((ulong)vector * 16), (target & 0xFFFF) | (0x10UL << 16) | ((ulong)stack << 32)
            | ((type | ((ulong)privilege << 5) | 0x80) << 40) | ((target & 0xFFFF_0000) << 32));
        Write(Idt + ((ulong)vector * 16) + 8, target >> 32);
    }

    public void Dispose() => memory.Dispose();

    private void WriteDescriptors()
    {
        Write(Gdt + 0x10, 0x00AF_9B00_0000_FFFF);
        Write(Gdt + 0x18, 0x00CF_9300_0000_FFFF);
        Write(Gdt + 0x20, 0x00CF_FB00_0000_FFFF);
        Write(Gdt + 0x28, 0x00CF_F300_0000_FFFF);
        Write(Gdt + 0x30, 0x00AF_FB00_0000_FFFF);
        Write(Tss + 4, Rsp0);
        Write(Tss + 36, Ist1);
        State.GdtBase = Gdt;
        State.GdtLimit = 0x7F;
        State.IdtBase = Idt;
        State.IdtLimit = 0xFFF;
        State.TaskBase = Tss;
        State.TaskLimit = 0x67;
        State.CodeSelector = 0x10;
        State.StackSelector = 0x18;
    }
}

/// <summary>Registers in memory; KVM takes every MSR and XCR0.</summary>
internal sealed class FakeRegisters : ICpuRegisters
{
    private KvmRegs regs;
    private KvmSregs sregs;

    public ref KvmRegs Regs => ref regs;

    public ref KvmSregs Sregs => ref sregs;

    public bool TrySetMsr(uint index, ulong value) => true;

    public bool TrySetXcr0(ulong value) => true;
}
