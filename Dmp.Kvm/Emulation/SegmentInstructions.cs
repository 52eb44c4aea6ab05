using System.Buffers.Binary;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;
using Iced.Intel;

namespace Dmp.Kvm.Emulation;

/// <summary>
/// Segment registers and descriptor tables. The guest's descriptors are read from its own GDT; in 64-bit mode they matter only for
/// their rights and for the base of FS, GS and TR.
/// </summary>
internal sealed class SegmentInstructions(EmulationContext context)
{
    private const int DescriptorTableSize = 10;
    private const ushort RplMask = 3;
    private const ushort TableIndicator = 4;
    private const ushort SelectorIndexMask = 0xFFF8;

    private CpuState State => context.State;

    /// <summary>MOV to and from a segment register.</summary>
    internal Outcome Move(in Instruction instruction)
    {
        if (!instruction.Op0Register.IsSegmentRegister())
        {
            ushort value = instruction.Op1Register switch
            {
                Register.CS => State.CodeSelector,
                Register.SS => State.StackSelector,
                _ => Segment(instruction.Op1Register).Selector,
            };
            return Store(instruction, value);
        }

        if (!TryLoadOperand(instruction, 1, out ushort selector))
        {
            return context.RaiseAccess();
        }

        if (instruction.Op0Register == Register.SS)
        {
            State.StackSelector = selector;
            return Outcome.Done;
        }

        return LoadData(instruction.Op0Register, selector);
    }

    /// <summary>Descriptor-table instructions.</summary>
    internal Outcome Execute(in Instruction instruction)
    {
        switch (instruction.Mnemonic)
        {
            case Mnemonic.Lgdt:
                return LoadTable(instruction, ref State.GdtBase, ref State.GdtLimit);
            case Mnemonic.Lidt:
                return LoadTable(instruction, ref State.IdtBase, ref State.IdtLimit);
            case Mnemonic.Sgdt:
                return StoreTable(instruction, State.GdtBase, State.GdtLimit);
            case Mnemonic.Sidt:
                return StoreTable(instruction, State.IdtBase, State.IdtLimit);
            case Mnemonic.Sldt:
                return Store(instruction, State.LdtSelector);
            case Mnemonic.Str:
                return Store(instruction, State.TaskSelector);
            case Mnemonic.Lldt:
                return LoadLdt(instruction);
            case Mnemonic.Ltr:
                return LoadTask(instruction);
            default:
                return Verify(instruction);
        }
    }

    /// <summary>RDFSBASE, WRFSBASE and the like, on a host where they fault at CPL 3.</summary>
    internal Outcome MoveBase(in Instruction instruction)
    {
        if ((State.Cr4 & Cr4.FsGsBase) == 0)
        {
            return context.Raise(GuestFault.InvalidOpcode);
        }

        ref KvmRegs regs = ref context.Vcpu.Regs;
        bool fs = instruction.Mnemonic is Mnemonic.Rdfsbase or Mnemonic.Wrfsbase;
        ref KvmSegment segment = ref Segment(fs ? Register.FS : Register.GS);
        if (instruction.Mnemonic is Mnemonic.Rdfsbase or Mnemonic.Rdgsbase)
        {
            Operands.Write(ref regs, instruction.Op0Register, segment.Base);
            return Outcome.Done;
        }

        ulong value = Operands.Read(ref regs, instruction.Op0Register);
        if (!Paging.IsCanonical(value))
        {
            return context.Raise(GuestFault.GeneralProtection);
        }

        segment.Base = value;
        return Outcome.Done;
    }

    /// <summary>Reads a descriptor of the guest's GDT.</summary>
    /// <returns>False when the selector is null, in an LDT, beyond the limit, or the table is not mapped.</returns>
    internal bool TryReadDescriptor(ushort selector, out SegmentDescriptor descriptor)
    {
        descriptor = default;
        int offset = selector & SelectorIndexMask;
        if (offset == 0 || (selector & TableIndicator) != 0 || offset + sizeof(ulong) - 1 > State.GdtLimit
            || !context.Access.TryRead(State.GdtBase + (ulong)offset, PageAccess.Read, out ulong low))
        {
            return false;
        }

        descriptor = new SegmentDescriptor(low);
        return true;
    }

    private ref KvmSegment Segment(Register register)
    {
        ref KvmSregs sregs = ref context.Vcpu.Sregs;
        switch (register)
        {
            case Register.DS: return ref sregs.Ds;
            case Register.ES: return ref sregs.Es;
            case Register.FS: return ref sregs.Fs;
            default: return ref sregs.Gs;
        }
    }

    private Outcome LoadData(Register register, ushort selector)
    {
        ref KvmSegment segment = ref Segment(register);
        if ((selector & ~RplMask) == 0)
        {
            segment = new KvmSegment { Selector = selector, Unusable = 1 };
            return Outcome.Done;
        }

        if (!TryReadDescriptor(selector, out SegmentDescriptor descriptor) || !descriptor.IsCodeOrData)
        {
            return context.Raise(new GuestFault(ExceptionVector.GeneralProtection, (uint)(selector & ~RplMask)));
        }

        if (!descriptor.Present)
        {
            return context.Raise(new GuestFault(ExceptionVector.SegmentNotPresent, (uint)(selector & ~RplMask)));
        }

        // A real data segment of the guest kernel cannot be loaded at CPL 3; in 64-bit mode only its base counts.
        segment = MonitorSegments.Data((ushort)(selector | RplMask), 3);
        segment.Base = register is Register.FS or Register.GS ? descriptor.Base : 0;
        return Outcome.Done;
    }

    private Outcome LoadTable(in Instruction instruction, ref ulong tableBase, ref ushort limit)
    {
        Span<byte> bytes = stackalloc byte[DescriptorTableSize];
        ulong address = Operands.Address(ref context.Vcpu.Regs, context.Vcpu.Sregs, instruction);
        if (!context.Access.TryRead(address, bytes, PageAccess.Read))
        {
            return context.RaiseAccess();
        }

        limit = BinaryPrimitives.ReadUInt16LittleEndian(bytes);
        tableBase = BinaryPrimitives.ReadUInt64LittleEndian(bytes[sizeof(ushort)..]);
        return Outcome.Done;
    }

    private Outcome StoreTable(in Instruction instruction, ulong tableBase, ushort limit)
    {
        Span<byte> bytes = stackalloc byte[DescriptorTableSize];
        BinaryPrimitives.WriteUInt16LittleEndian(bytes, limit);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[sizeof(ushort)..], tableBase);
        ulong address = Operands.Address(ref context.Vcpu.Regs, context.Vcpu.Sregs, instruction);
        return context.Access.TryWrite(address, bytes, context.Access.OwnPrivilege) ? Outcome.Done : context.RaiseAccess();
    }

    private Outcome LoadLdt(in Instruction instruction)
    {
        if (!TryLoadOperand(instruction, 0, out ushort selector))
        {
            return context.RaiseAccess();
        }

        State.LdtSelector = selector;
        return Outcome.Done;
    }

    private Outcome LoadTask(in Instruction instruction)
    {
        if (!TryLoadOperand(instruction, 0, out ushort selector))
        {
            return context.RaiseAccess();
        }

        if (!TryReadDescriptor(selector, out SegmentDescriptor descriptor)
            || !context.Access.TryRead(
                State.GdtBase + (ulong)(selector & SelectorIndexMask) + sizeof(ulong), PageAccess.Read, out uint high))
        {
            return context.Raise(new GuestFault(ExceptionVector.GeneralProtection, (uint)(selector & ~RplMask)));
        }

        State.TaskSelector = selector;
        State.TaskBase = descriptor.Base | ((ulong)high << 32);
        State.TaskLimit = descriptor.Limit;
        return Outcome.Done;
    }

    /// <summary>LAR, LSL, VERR, VERW on the guest's own descriptors.</summary>
    private Outcome Verify(in Instruction instruction)
    {
        const ulong ZeroFlag = 1 << 6;
        bool hasTarget = instruction.Mnemonic is Mnemonic.Lar or Mnemonic.Lsl;
        if (!TryLoadOperand(instruction, hasTarget ? 1 : 0, out ushort selector))
        {
            return context.RaiseAccess();
        }

        ref KvmRegs regs = ref context.Vcpu.Regs;
        bool found = TryReadDescriptor(selector, out SegmentDescriptor descriptor);
        bool ok = found && instruction.Mnemonic switch
        {
            Mnemonic.Verr => descriptor.IsReadable,
            Mnemonic.Verw => descriptor.IsWritable,
            _ => true,
        };
        regs.Rflags = ok ? regs.Rflags | ZeroFlag : regs.Rflags & ~ZeroFlag;
        if (ok && hasTarget)
        {
            ulong value = instruction.Mnemonic == Mnemonic.Lar ? descriptor.AccessRights : descriptor.Limit;
            Operands.Write(ref regs, instruction.Op0Register, value);
        }

        return Outcome.Done;
    }

    private Outcome Store(in Instruction instruction, ushort value)
    {
        if (instruction.Op0Kind == OpKind.Register)
        {
            Operands.Write(ref context.Vcpu.Regs, instruction.Op0Register, value);
            return Outcome.Done;
        }

        ulong address = Operands.Address(ref context.Vcpu.Regs, context.Vcpu.Sregs, instruction);
        return context.Access.TryWrite(address, value, context.Access.OwnPrivilege) ? Outcome.Done : context.RaiseAccess();
    }

    private bool TryLoadOperand(in Instruction instruction, int operand, out ushort value)
    {
        if (instruction.GetOpKind(operand) == OpKind.Register)
        {
            value = (ushort)Operands.Read(ref context.Vcpu.Regs, instruction.GetOpRegister(operand));
            return true;
        }

        ulong address = Operands.Address(ref context.Vcpu.Regs, context.Vcpu.Sregs, instruction);
        return context.Access.TryRead(address, context.Access.OwnPrivilege, out value);
    }
}

/// <summary>The first eight bytes of a descriptor (AMD APM vol. 2, 4.7 and 4.8).</summary>
/// <param name="low">The bytes.</param>
internal readonly struct SegmentDescriptor(ulong low)
{
    private const int CodeBit = 3;
    private const int WritableOrReadableBit = 1;

    internal ulong Base => ((low >> 16) & 0xFF_FFFF) | ((low >> 32) & 0xFF00_0000);

    internal uint Limit
    {
        get
        {
            uint raw = (uint)((low & 0xFFFF) | ((low >> 32) & 0xF_0000));
            return ((low >> 55) & 1) != 0 ? (raw << 12) | 0xFFF : raw;
        }
    }

    /// <summary>What LAR returns.</summary>
    internal ulong AccessRights => (low >> 32) & 0x00F0_FF00;

    internal int Type => (int)(low >> 40) & 0xF;

    internal bool IsCodeOrData => ((low >> 44) & 1) != 0;

    internal int Privilege => (int)(low >> 45) & 3;

    internal bool Present => ((low >> 47) & 1) != 0;

    internal bool IsLong => ((low >> 53) & 1) != 0;

    internal bool IsCode => IsCodeOrData && ((Type >> CodeBit) & 1) != 0;

    internal bool IsReadable => IsCodeOrData && (!IsCode || ((Type >> WritableOrReadableBit) & 1) != 0);

    internal bool IsWritable => IsCodeOrData && !IsCode && ((Type >> WritableOrReadableBit) & 1) != 0;
}
