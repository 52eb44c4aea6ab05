using System.Buffers.Binary;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Monitor;

/// <summary>
/// The monitor: the small piece of our code inside the VM at CPL 0. Descriptor tables, one stub per exception (an OUT to the port of
/// the vector's number, which exits), the SYSCALL entry, and the page tables that map all of it supervisor-only. Written once, before
/// the first vCPU runs.
/// </summary>
internal static class MonitorImage
{
    /// <summary>Exceptions have vectors below this (AMD APM vol. 2, 8.1).</summary>
    internal const int ExceptionVectors = 32;

    private const int StubSize = 16;
    private const int DescriptorSize = 8;
    private const int GateSize = 16;
    private const int TssSize = 104;
    private const int TssRsp0Offset = 4;
    private const int TssIoMapOffset = 102;
    private const int BreakpointVector = 3;
    private const int OverflowVector = 4;

    private const ulong TableEntry = (ulong)(PageEntry.Present | PageEntry.Writable | PageEntry.Accessed);
    private const ulong LargeLeaf = TableEntry | (ulong)(PageEntry.Large | PageEntry.Dirty);

    /// <summary>Virtual address of the SYSCALL entry: the real LSTAR.</summary>
    internal const ulong SyscallEntry = MachineLayout.MonitorBase + MachineLayout.SyscallEntryOffset;

    /// <summary>
    /// Virtual address of the code that enters guest code from CPL 0: it pops CR3, RAX and the frame of an IRETQ.
    /// </summary>
    internal const ulong EntryStub = MachineLayout.MonitorBase + MachineLayout.EntryStubOffset;

    /// <summary>As <see cref="EntryStub"/>, but leaves CR3 alone and pops RAX first.</summary>
    internal const ulong EntryStubSameRoot = EntryStub + StubSize;

    /// <summary>The PML4 entry that maps the monitor, for slot <see cref="Pml4Slot"/> of every root.</summary>
    internal const ulong Pml4Entry = (MachineLayout.MonitorMachineBase + MachineLayout.MonitorPdptOffset) | TableEntry;

    /// <summary>The PML4 slot of the monitor.</summary>
    internal static readonly int Pml4Slot = Paging.Index(MachineLayout.MonitorBase, 4);

    /// <summary>Writes the monitor for a number of vCPUs.</summary>
    /// <param name="region">The monitor region.</param>
    /// <param name="vcpus">Number of vCPUs.</param>
    internal static void Write(MappedMemory region, int vcpus)
    {
        WriteDescriptors(region, vcpus);
        WriteStubs(region);
        WritePageTables(region);
        for (int vcpu = 0; vcpu < vcpus; vcpu++)
        {
            Span<byte> tss = region.Slice(MachineLayout.VcpuBlock(vcpu) + MachineLayout.TssOffset, TssSize);
            BinaryPrimitives.WriteUInt64LittleEndian(tss[TssRsp0Offset..], StackTop(vcpu));

            // No I/O bitmap: its offset lies beyond the limit, so every port access at CPL 3 faults.
            BinaryPrimitives.WriteUInt16LittleEndian(tss[TssIoMapOffset..], TssSize);
            WriteExposedTables(region, vcpu);
        }
    }

    /// <summary>Virtual address of the end of a vCPU's exception stack.</summary>
    internal static ulong StackTop(int vcpu) =>
        MachineLayout.MonitorBase + MachineLayout.VcpuBlock(vcpu) + MachineLayout.StackTopOffset;

    /// <summary>Loads the registers that point to the monitor.</summary>
    internal static void LoadTables(int vcpu, ref KvmSregs sregs)
    {
        sregs.Gdt.Base = MachineLayout.MonitorBase + MachineLayout.GdtOffset;
        sregs.Gdt.Limit = (ushort)((MonitorSegments.GdtEntries(MachineLayout.MaximumVcpus) * DescriptorSize) - 1);
        sregs.Idt.Base = MachineLayout.MonitorBase + MachineLayout.IdtOffset;
        sregs.Idt.Limit = (ExceptionVectors * GateSize) - 1;
        sregs.Tr = MonitorSegments.Tss(
            vcpu, MachineLayout.MonitorBase + MachineLayout.VcpuBlock(vcpu) + MachineLayout.TssOffset, TssSize - 1);
        sregs.Ldt = new KvmSegment { Unusable = 1 };
    }

    private static void WriteDescriptors(MappedMemory region, int vcpus)
    {
        Span<byte> gdt = region.Slice(MachineLayout.GdtOffset, MonitorSegments.GdtEntries(vcpus) * DescriptorSize);
        MonitorSegments.WriteGdt(gdt, vcpus, TssSize - 1);
        for (int vector = 0; vector < ExceptionVectors; vector++)
        {
            int privilege = vector is BreakpointVector or OverflowVector ? 3 : 0;
            ulong target = MachineLayout.MonitorBase
                + (vector == BreakpointVector ? MachineLayout.BreakpointStubOffset : MachineLayout.StubsOffset + (ulong)(vector * StubSize));
            WriteGate(region.Slice(MachineLayout.IdtOffset + (ulong)(vector * GateSize), GateSize), target, privilege);
        }
    }

    // A 64-bit interrupt gate, AMD APM vol. 2, 4.8.4.
    private static void WriteGate(Span<byte> gate, ulong target, int privilege)
    {
        const byte InterruptGate = 0x0E;
        const byte Present = 0x80;
        BinaryPrimitives.WriteUInt16LittleEndian(gate, (ushort)target);
        BinaryPrimitives.WriteUInt16LittleEndian(gate[2..], MonitorSegments.MonitorCodeSelector);
        gate[4] = 0;
        gate[5] = (byte)(Present | (privilege << 5) | InterruptGate);
        BinaryPrimitives.WriteUInt16LittleEndian(gate[6..], (ushort)(target >> 16));
        BinaryPrimitives.WriteUInt32LittleEndian(gate[8..], (uint)(target >> 32));
        BinaryPrimitives.WriteUInt32LittleEndian(gate[12..], 0);
    }

    private static void WriteStubs(MappedMemory region)
    {
        for (int vector = 0; vector < ExceptionVectors; vector++)
        {
            WriteExit(region, MachineLayout.StubsOffset + (ulong)(vector * StubSize), (byte)vector);
        }

        WriteExit(region, MachineLayout.SyscallEntryOffset, MachineLayout.SyscallPort);
        WriteBreakpointStub(region);
        WriteEntryStubs(region);
    }

    private static void WriteEntryStubs(MappedMemory region)
    {
        Assembler other = new(64);
        other.pop(rax);
        other.mov(cr3, rax);
        other.pop(rax);
        other.iretq();
        WriteCode(region, MachineLayout.EntryStubOffset, other, StubSize);
        Assembler same = new(64);
        same.pop(rax);
        same.iretq();
        WriteCode(region, MachineLayout.EntryStubOffset + StubSize, same, StubSize);
    }

    /// <summary>
    /// INT3 is the cheapest way from CPL 3 into the monitor, so implants use it for the few things that take CPL 0: see
    /// <see cref="Patching.MonitorGates"/>. A gate is known by its address, which user code cannot run at; every other breakpoint exits.
    /// Each instruction here counts where CPL 0 is emulated.
    /// </summary>
    private static void WriteBreakpointStub(MappedMemory region)
    {
        const int FrameSize = 5 * sizeof(ulong);
        const int AddressOffset = MachineLayout.GateShift / 8;
        const int ReturnFrame = (int)MachineLayout.VcpuPageOffset + ((int)VcpuPageField.ReturnRax * sizeof(ulong))
            - ((int)MachineLayout.StackTopOffset - FrameSize);
        Assembler code = new(64);
        Label user = code.CreateLabel();
        Label root = code.CreateLabel();
        code.cmp(__dword_ptr[rsp + AddressOffset], unchecked((int)(uint)(MachineLayout.UserGate >> MachineLayout.GateShift)));
        code.je(user);
        code.cmp(__dword_ptr[rsp + AddressOffset], unchecked((int)(uint)(MachineLayout.RootGate >> MachineLayout.GateShift)));
        code.je(root);
        code.@out((byte)BreakpointVector, al);
        code.hlt();
        code.Label(ref user);
        code.mov(cr3, rax);
        code.add(rsp, ReturnFrame);
        code.pop(rax);
        code.iretq();
        code.Label(ref root);
        code.mov(cr3, rax);
        code.iretq();
        WriteCode(region, MachineLayout.BreakpointStubOffset, code, Paging.PageSize);
    }

    /// <summary>Code that exits: the VMM sets every register before it goes on, so nothing follows the OUT but a stop.</summary>
    private static void WriteExit(MappedMemory region, ulong offset, byte port)
    {
        Assembler code = new(64);
        code.@out(port, al);
        code.hlt();
        WriteCode(region, offset, code, StubSize);
    }

    private static void WriteCode(MappedMemory region, ulong offset, Assembler code, int size)
    {
        CodeBuffer buffer = new(new byte[size]);
        _ = code.Assemble(buffer, MachineLayout.MonitorBase + offset);
        buffer.Bytes.CopyTo(region.Slice(offset, size));
    }

    /// <summary>The entry for the 1 GiB that a vCPU's kernel views expose at <see cref="MachineLayout.ExposedBase"/>.</summary>
    internal static ulong ExposedEntry(int vcpu) => MachineAddressOf(MachineLayout.VcpuBlock(vcpu) + MachineLayout.ExposedPdOffset)
        | TableEntry | (ulong)PageEntry.User;

    private static ulong MachineAddressOf(ulong offset) => MachineLayout.MonitorMachineBase + offset;

    /// <summary>The tables of the arena, which all vCPUs share and nothing is in yet, of the devices' page, and of the vCPU's own pages.</summary>
    private static void WriteExposedTables(MappedMemory region, int vcpu)
    {
        const ulong UserTable = TableEntry | (ulong)PageEntry.User;
        const ulong PageLeaf = UserTable | (ulong)(PageEntry.Dirty | PageEntry.NoExecute);
        ulong directory = MachineLayout.VcpuBlock(vcpu) + MachineLayout.ExposedPdOffset;
        for (ulong covered = 0; covered < MachineLayout.ArenaSize; covered += Paging.LargePageSize)
        {
            region.Word(directory + EntryOffset(MachineLayout.ArenaBase + covered, 2)) = UserTable
                | MachineAddressOf(MachineLayout.ArenaTablesOffset + (covered / Paging.LargePageSize * Paging.PageSize));
        }

        ulong table = MachineLayout.VcpuBlock(vcpu) + MachineLayout.ExposedPtOffset;
        region.Word(directory + EntryOffset(MachineLayout.VcpuPageAddress, 2)) = MachineAddressOf(table) | UserTable;
        region.Word(table + EntryOffset(MachineLayout.VcpuPageAddress, 1)) =
            MachineAddressOf(MachineLayout.VcpuBlock(vcpu) + MachineLayout.VcpuPageOffset) | PageLeaf;
        region.Word(table + EntryOffset(MachineLayout.CpuidPageAddress, 1)) =
            MachineAddressOf(MachineLayout.VcpuBlock(vcpu) + MachineLayout.CpuidPageOffset) | (PageLeaf & ~(ulong)PageEntry.Writable);
        region.Word(table + EntryOffset(MachineLayout.DevicePageAddress, 1)) =
            MachineAddressOf(MachineLayout.DevicePageOffset) | PageLeaf;
    }

    private static ulong EntryOffset(ulong address, int level) => (ulong)Paging.Index(address, level) * Paging.EntrySize;

    private static void WritePageTables(MappedMemory region)
    {
        region.Word(MachineLayout.MonitorPdptOffset) =
            (MachineLayout.MonitorMachineBase + MachineLayout.MonitorPdOffset) | TableEntry;
        for (ulong offset = 0; offset < region.Size; offset += Paging.LargePageSize)
        {
            ulong slot = MachineLayout.MonitorPdOffset + (offset / Paging.LargePageSize * Paging.EntrySize);
            region.Word(slot) = (MachineLayout.MonitorMachineBase + offset) | LargeLeaf;
        }
    }

    private sealed class CodeBuffer(byte[] bytes) : CodeWriter
    {
        private int length;

        internal byte[] Bytes => bytes;

        public override void WriteByte(byte value) => bytes[length++] = value;
    }
}
