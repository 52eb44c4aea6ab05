using System.Runtime.InteropServices;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Patching;
using Dmp.Kvm.Specs.Machine;
using Dmp.Kvm.Specs.Memory;
using FsCheck;
using FsCheck.Fluent;
using Iced.Intel;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>
/// A machine on KVM whose only kernel code is what the spec writes to <see cref="Code"/>, within an implant's reach. It runs from any
/// state until it comes to a mark: CLTS, which traps and changes nothing here. Every exception handler and every interrupt handler is one.
/// </summary>
internal sealed class PatchRig : IDisposable
{
    internal const ulong Code = 0xFFFF_FFFF_8100_0000;
    internal const int CodePages = 4;

    /// <summary>Nothing is mapped before and behind.</summary>
    internal const ulong Stack = 0xFFFF_FFFF_8200_0000;
    internal const int StackBytes = 2 * Paging.PageSize;

    /// <summary>User code: a mark, and nothing else.</summary>
    internal const ulong User = 0x40_0000;

    /// <summary>A supervisor page of the low half, another frame in the address spaces of odd PCIDs.</summary>
    internal const ulong OwnPage = 0x80_0000;

    /// <summary>Frames that may be at <see cref="OwnPage"/>; each begins with its number.</summary>
    internal const int OwnFrameCount = 4;

    internal const ulong Handlers = System + 0x4000;
    internal const byte InterruptVector = 0x60;
    internal const ushort KernelCode = 0x10;
    internal const ushort KernelData = 0x18;

    /// <summary>CLTS.</summary>
    internal static readonly byte[] Mark = [0x0F, 0x06];

    private const ulong System = 0xFFFF_FFFF_8300_0000;
    private const ulong Idt = System + 0x1000;
    private const ulong Tss = System + 0x2000;
    private const ulong ExceptionStack = System + 0x4000;
    private const int ExceptionStackBytes = 256;
    private const int FrameBytes = 5 * sizeof(ulong);
    private const int SystemPages = 6;
    private const int HandlerSize = 16;
    private const ulong CodeFrames = 0x80_0000;
    private const ulong StackFrames = 0xA0_0000;
    private const ulong SystemFrames = 0xC0_0000;
    private const ulong UserFrame = 0xE0_0000;
    private const ulong OwnFrames = 0x100_0000;
    private const ulong OtherRoot = 0x120_0000;
    private const ulong FreeFrames = 0x140_0000;
    private const ulong OtherTables = OtherRoot + Paging.PageSize;
    private const ulong Leaf = (ulong)(PageEntry.Present | PageEntry.Writable | PageEntry.Accessed | PageEntry.Dirty);
    private const ulong KernelBits = (ulong)PageEntry.Global;
    private const ulong UserBit = (ulong)PageEntry.User;

    private readonly VirtualMachine machine;
    private readonly Vcpu vcpu;
    private readonly LocalApic apic;
    private readonly HashSet<ulong> marks = [];
    private readonly GuestPhysicalAddress[] ownEntries = new GuestPhysicalAddress[2];
    private readonly GuestTables tables;
    private GuestPhysicalAddress otherDirectoryEntry;
    private GuestResult? result;

    internal PatchRig(bool patching, ReadOnlySpan<byte> code, IEnumerable<ulong> marks)
    {
        machine = TinyKernel.Load(a => a.PowerOff(), patching, audit: false);
        vcpu = machine.InternalVcpus[0];
        apic = machine.Shared.Chipset.LocalApics[0];
        tables = new GuestTables(machine.Shared.Memory);
        this.marks.UnionWith(marks);
        MapMemory();
        WriteSystem();
        code.CopyTo(Bytes(Code, CodePages * Paging.PageSize));
        Mark.CopyTo(Bytes(User, Mark.Length));
        _ = this.marks.Add(User);

        const ulong SpuriousVector = 0xF0;
        apic.Write(SpuriousVector, sizeof(uint), 0x1FF);
        vcpu.BeforeEmulation = NoteMark;
    }

    /// <summary>Checks something with many seeds on the rigs at hand; one that fails is told.</summary>
    internal static void CheckSeeds(int count, Action<Random> check) => Check.One(
        Config.QuickThrowOnFailure.WithMaxTest(count),
        Prop.ForAll(Gen.Choose(int.MinValue, int.MaxValue).ToArbitrary(), seed => check(new Random(seed))));

    /// <summary>Code for an address, and a mark behind it.</summary>
    internal static byte[] Marked(ulong address, Action<Assembler> write, out ulong mark)
    {
        byte[] code = TinyMultiboot.Assemble(64, address, write);
        mark = address + (ulong)code.Length;
        return [.. code, .. Mark];
    }

    internal VirtualMachine Machine => machine;

    internal Vcpu Vcpu => vcpu;

    internal CpuState State => vcpu.State;

    internal ref KvmRegs Registers => ref vcpu.Registers.Regs;

    internal PatchEngine Engine => (PatchEngine)machine.Patching!;

    /// <summary>Instructions that were emulated, marks included.</summary>
    internal long Emulations { get; private set; }

    /// <summary>CR3 of a PCID: even and odd ones differ in what is at <see cref="OwnPage"/>.</summary>
    internal static ulong Root(int pcid) => (pcid % 2 == 0 ? GuestTables.Root : OtherRoot) | (uint)pcid;

    /// <summary>The entry of a page in the address spaces of even PCIDs; tables above it are made if need be.</summary>
    internal ref ulong Entry(ulong page) => ref tables.Entry(page, 1);

    /// <summary>A frame that nothing is in, and its first word.</summary>
    internal ref ulong FreeFrame(int number, out ulong address)
    {
        address = FreeFrames + ((ulong)number * Paging.PageSize);
        return ref machine.Shared.Memory.Word(new(address));
    }

    /// <summary>Puts a frame at <see cref="OwnPage"/>, as the guest might: no TLB is told.</summary>
    internal void MapOwnPage(int pcid, int frame) => machine.Shared.Memory.Word(ownEntries[pcid % 2]) = OwnEntry(frame);

    /// <summary>The address spaces of odd PCIDs get one of two tables for <see cref="OwnPage"/>, as the guest might do it.</summary>
    internal void ReplaceOwnTable(int table)
    {
        ulong address = OtherTables + ((2UL + (uint)table) * Paging.PageSize);
        machine.Shared.Memory.Word(otherDirectoryEntry) = address | GuestTables.TableBits | (ulong)PageEntry.Accessed;
        ownEntries[1] = new(address + ((ulong)Paging.Index(OwnPage, 1) * Paging.EntrySize));
    }

    /// <summary>What the guest reads at <see cref="OwnPage"/> when no TLB is in the way.</summary>
    internal ulong OwnFrame(int pcid) =>
        machine.Shared.Memory.Word(new(machine.Shared.Memory.Word(ownEntries[pcid % 2]) & Paging.FrameMask));

    /// <summary>Handler of a vector.</summary>
    internal static ulong Handler(int vector) => Handlers + (ulong)(vector * HandlerSize);

    /// <summary>Guest memory of the rig.</summary>
    internal Span<byte> Bytes(ulong address, int length) => machine.Shared.Memory.Slice(
        new GuestPhysicalAddress(address switch
        {
            >= System => SystemFrames + (address - System),
            >= Stack => StackFrames + (address - Stack),
            >= Code => CodeFrames + (address - Code),
            _ => UserFrame + (address - User),
        }),
        length);

    internal ref ulong Word(ulong address) => ref MemoryMarshal.AsRef<ulong>(Bytes(address, sizeof(ulong)));

    /// <summary>Plans, prepares and applies the patch of a site.</summary>
    internal PatchPlan Patch(ulong site)
    {
        PatchPlan plan = Assert.IsType<PlanResult.Planned>(Engine.Plan(site, ExitKind.Privileged)).Plan;
        PreparedPatch? prepared = Engine.Prepare(plan, out PreparationFailure? failure);
        Assert.True(prepared is not null, failure?.Reason);
        Assert.True(Engine.TryApply(prepared, out string reason), reason);
        return plan;
    }

    /// <summary>Runs from a state to the first mark.</summary>
    internal GuestResult Run(GuestState state)
    {
        Load(state);
        result = null;
        return RunOn();
    }

    /// <summary>Runs from a state for as long as it goes.</summary>
    internal VcpuStop RunToEnd(GuestState state)
    {
        Load(state);
        result = null;
        return vcpu.Run();
    }

    /// <summary>Goes on after a pause to the first mark.</summary>
    internal GuestResult RunOn()
    {
        VcpuStop stop = vcpu.Run();
        Assert.True(stop is VcpuStop.Paused, stop.ToString());
        Assert.NotNull(result);
        return result;
    }

    /// <summary>Makes an interrupt pending.</summary>
    internal void Interrupt(byte vector = InterruptVector, bool level = false) =>
        Assert.True(apic.Accept(new InterruptMessage(0, false, DeliveryMode.Fixed, vector, level)));

    public void Dispose() => machine.Dispose();

    private void Load(GuestState state)
    {
        const ulong EndOfInterrupt = 0xB0;
        const ulong TaskPriority = 0x80;
        ref KvmRegs regs = ref Registers;
        regs = default;
        for (int index = 0; index < GuestState.GeneralRegisters; index++)
        {
            GuestState.General64(ref regs, index) = state.General[index];
        }

        regs.Rip = state.Rip;
        regs.Rflags = (ulong)Rflags.AlwaysOne | state.Flags;
        vcpu.Registers.Sregs.Gs.Base = state.GsBase;
        vcpu.Registers.Sregs.Fs.Base = state.FsBase;
        State.Cpl = 0;
        State.InterruptFlag = state.InterruptFlag;
        State.NmiBlocked = state.NmiBlocked;
        State.IoPrivilege = state.IoPrivilege;
        State.Cr2 = state.Cr2;
        State.Cr3 = state.Cr3 == 0 ? State.Cr3 : state.Cr3;
        State.Dr6 = (ulong)Dr6.Fixed;
        State.CodeSelector = state.CodeSelector;
        State.StackSelector = state.StackSelector;
        State.KernelGsBase = state.KernelGsBase;
        State.Star = state.Star;
        State.Cr4 = state.XSave ? State.Cr4 | Cr4.XSave : State.Cr4 & ~Cr4.XSave;
        State.Xcr0 = state.Xcr0;
        new Random(state.MemorySeed).NextBytes(Bytes(Stack, StackBytes));
        Bytes(ExceptionStack - ExceptionStackBytes, ExceptionStackBytes).Clear();
        foreach ((ulong address, ulong value) in state.Memory)
        {
            MemoryMarshal.Write(Bytes(address, sizeof(ulong)), in value);
        }

        apic.Write(TaskPriority, sizeof(uint), 0);
        while (apic.TryAcknowledge(out _) || apic.ProcessorPriority != 0)
        {
            apic.Write(EndOfInterrupt, sizeof(uint), 0);
        }

        foreach (byte vector in state.InService)
        {
            Interrupt(vector, state.LevelTriggered);
            Assert.True(apic.TryAcknowledge(out byte taken) && taken == vector);
        }

        foreach (byte vector in state.Waiting)
        {
            Interrupt(vector);
        }

        if (state.Pending)
        {
            Interrupt();
        }

        ResetSerialPort();
        foreach ((ushort port, byte? value) in state.Ports)
        {
            Access(port, value);
        }

        for (int typed = 0; typed < state.Typed; typed++)
        {
            _ = machine.Console.PutInput("?"u8);
        }
    }

    /// <summary>Everything as after reset, but for the divisor.</summary>
    private void ResetSerialPort()
    {
        const byte ReadyToReceive = 0x03;
        const byte ResetFifos = 0x06;
        const uint DataReady = 1;
        Access(DeviceLayout.Serial + (int)UartRegister.Lcr, 0);
        Access(DeviceLayout.Serial + (int)UartRegister.IerDlm, 0);
        Access(DeviceLayout.Serial + (int)UartRegister.Mcr, ReadyToReceive);
        while ((Access(DeviceLayout.Serial + (int)UartRegister.Lsr, null) & DataReady) != 0)
        {
            Access(DeviceLayout.Serial, null);
        }

        Access(DeviceLayout.Serial + (int)UartRegister.Mcr, 0);
        Access(DeviceLayout.Serial + (int)UartRegister.IirFcr, ResetFifos);
        Access(DeviceLayout.Serial + (int)UartRegister.Msr, null);
        Access(DeviceLayout.Serial + (int)UartRegister.Scr, 0);
        _ = machine.Text();
    }

    private uint Access(ushort port, byte? value)
    {
        PortBus ports = machine.Shared.Chipset.Ports;
        if (value is { } written)
        {
            ports.Write(port, 1, written);
        }

        return value is null ? ports.Read(port, 1) : 0;
    }

    private void NoteMark()
    {
        Emulations++;
        if (result is null && marks.Contains(Registers.Rip))
        {
            result = Capture();
            vcpu.RequestPause();
        }
    }

    private GuestResult Capture()
    {
        const uint ApicSpacing = 0x10;
        const uint InService = 0x10;
        const uint Requests = 0x20;
        const uint VectorRegisters = 8;
        ref KvmRegs regs = ref Registers;
        GuestResult captured = new();
        for (int index = 0; index < GuestState.GeneralRegisters; index++)
        {
            captured.Note(GuestState.Names[index], GuestState.General64(ref regs, index));
        }

        captured.Note("rip", regs.Rip);
        captured.Note("flags", regs.Rflags & (ulong)Rflags.UserChangeable);
        captured.Note("if", State.InterruptFlag ? 1UL : 0);
        captured.Note("nmi", State.NmiBlocked ? 1UL : 0);
        captured.Note("iopl", State.IoPrivilege);
        captured.Note("cpl", (ulong)State.Cpl);
        captured.Note("cr2", State.Cr2);
        captured.Note("cr3", State.Cr3);
        captured.Note("dr6", State.Dr6);
        captured.Note("cs", State.CodeSelector);
        captured.Note("ss", State.StackSelector);
        captured.Note("kernel gs base", State.KernelGsBase);
        captured.Note("gs base", vcpu.Registers.Sregs.Gs.Base);
        captured.Note("fs base", vcpu.Registers.Sregs.Fs.Base);
        captured.Note("interrupt pending", apic.HasInterrupt ? 1UL : 0);
        for (uint register = 0; register < VectorRegisters; register++)
        {
            captured.Note($"in service {register}", apic.Read((InService + register) * ApicSpacing, sizeof(uint)));
            captured.Note($"requested {register}", apic.Read((Requests + register) * ApicSpacing, sizeof(uint)));
        }

        captured.Note("processor priority", apic.ProcessorPriority);
        captured.FaultedAt = Word(ExceptionStack - FrameBytes);
        captured.FlagsAtFault = Word(ExceptionStack - FrameBytes + (2 * sizeof(ulong)));
        captured.StackAtFault = Word(ExceptionStack - FrameBytes + (3 * sizeof(ulong)));
        byte[] text = new byte[sizeof(ulong)];
        captured.Note("serial text length", (ulong)machine.Console.TakeOutput(text));
        captured.Note("serial text", MemoryMarshal.Read<ulong>(text));
        for (UartRegister register = UartRegister.Scr; register >= UartRegister.RbrThrDll; register--)
        {
            captured.Note($"serial {register}", Access((ushort)(DeviceLayout.Serial + (int)register), null));
        }

        captured.NoteMemory(Stack, Bytes(Stack, StackBytes));
        captured.NoteMemory(ExceptionStack - ExceptionStackBytes, Bytes(ExceptionStack - ExceptionStackBytes, ExceptionStackBytes));
        return captured;
    }

    private void MapMemory()
    {
        Map(tables, Code, CodeFrames, CodePages, KernelBits);
        Map(tables, Stack, StackFrames, StackBytes / Paging.PageSize, KernelBits);
        Map(tables, System, SystemFrames, SystemPages, KernelBits);
        Map(tables, User, UserFrame, 1, UserBit);
        Map(tables, OwnPage, OwnFrames, 1, 0);

        // The other address space: the same kernel half and user page, another frame at OwnPage.
        GuestMemory memory = machine.Shared.Memory;
        memory.Slice(new(GuestTables.Root), Paging.PageSize).CopyTo(memory.Slice(new(OtherRoot), Paging.PageSize));
        for (int level = 3; level >= 1; level--)
        {
            ulong copy = OtherTables + ((ulong)(3 - level) * Paging.PageSize);
            ulong table = tables.Entry(OwnPage, level + 1) & Paging.FrameMask;
            memory.Slice(new(table), Paging.PageSize).CopyTo(memory.Slice(new(copy), Paging.PageSize));
            ulong parent = level == 3 ? OtherRoot : copy - Paging.PageSize;
            memory.Word(new(parent + ((ulong)Paging.Index(OwnPage, level + 1) * Paging.EntrySize))) = copy | GuestTables.TableBits;
        }

        ulong last = OtherTables + (2UL * Paging.PageSize);
        memory.Word(new(last + ((ulong)Paging.Index(OwnPage, 1) * Paging.EntrySize))) = OwnEntry(1);
        for (uint frame = 0; frame < OwnFrameCount; frame++)
        {
            memory.Word(new(OwnFrames + (frame * Paging.PageSize))) = frame;
        }

        memory.Slice(new(last), Paging.PageSize).CopyTo(memory.Slice(new(last + Paging.PageSize), Paging.PageSize));
        otherDirectoryEntry = new(last - Paging.PageSize + ((ulong)Paging.Index(OwnPage, 2) * Paging.EntrySize));
        ownEntries[0] = tables.Slot(OwnPage, 1);
        ReplaceOwnTable(0);
        State.Cr3 = GuestTables.Root;
    }

    private static ulong OwnEntry(int frame) => (OwnFrames + ((ulong)frame * Paging.PageSize)) | Leaf;

    private static void Map(GuestTables tables, ulong address, ulong frames, int pages, ulong more)
    {
        for (int page = 0; page < pages; page++)
        {
            ulong offset = (ulong)page * Paging.PageSize;
            tables.Map(address + offset, 1, (frames + offset) | Leaf | more);
        }
    }

    private void WriteSystem()
    {
        const int InterruptStackTable = 36;
        const int Rsp0 = 4;
        Word(System + 0x10) = 0x00AF_9B00_0000_FFFF;
        Word(System + 0x18) = 0x00CF_9300_0000_FFFF;
        Word(System + 0x20) = 0x00CF_FB00_0000_FFFF;
        Word(System + 0x28) = 0x00CF_F300_0000_FFFF;
        Word(System + 0x30) = 0x00AF_FB00_0000_FFFF;
        State.GdtBase = System;
        State.GdtLimit = 0x7F;
        State.IdtBase = Idt;
        State.IdtLimit = 0xFFF;
        State.TaskBase = Tss;
        State.TaskLimit = 0x67;
        State.Efer |= Efer.SystemCall;
        State.Cr4 |= Cr4.Pcid | Cr4.PageGlobal | Cr4.FsGsBase;
        Word(Tss + InterruptStackTable) = ExceptionStack;
        MemoryMarshal.Write(Bytes(Tss + Rsp0, sizeof(ulong)), Stack + 0x800);
        for (int vector = 0; vector < 256; vector++)
        {
            // Exceptions have a stack of their own, for the guest's may be what they are about.
            SetGate(vector, Handler(vector), stackTable: vector < 32 ? 1 : 0);
            Mark.CopyTo(Bytes(Handler(vector), Mark.Length));
            _ = marks.Add(Handler(vector));
        }
    }

    /// <summary>An interrupt gate.</summary>
    internal void SetGate(int vector, ulong target, int stackTable)
    {
        const ulong Present = 0x8E00UL << 32;
        ulong gate = Idt + (ulong)(vector * 16);
        Word(gate) = (target & 0xFFFF) | ((ulong)KernelCode << 16) | ((ulong)stackTable << 32) | Present | ((target & 0xFFFF_0000) << 32);
        Word(gate + 8) = target >> 32;
    }
}
