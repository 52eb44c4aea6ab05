using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching;

/// <summary>What an address within an implant means for the guest.</summary>
internal enum ImplantPoint : byte
{
    /// <summary>In the middle of a template: the guest is at no address. A fault here belongs to the template's instruction.</summary>
    Inner,

    /// <summary>Exactly before a guest instruction.</summary>
    Exact,

    /// <summary>Exactly before a guest instruction in the shadow of an STI: faults are the guest's, but nothing is delivered.</summary>
    Shadowed,

    /// <summary>
    /// A trap behind the beginning of a template, with everything as it was there: the VMM is to emulate the guest instruction.
    /// </summary>
    Emulate,
}

/// <summary>Collects the code of an implant, and what each of its instructions means.</summary>
internal sealed class ImplantAssembler
{
    private const int UserPrivilege = 3;

    private readonly Assembler assembler = new(64);
    private readonly List<ImplantAddress> points = [];
    private ulong guestAddress;
    private bool atStart;
    private bool shadowed;
    private bool saved;

    /// <summary>For instructions: <c>code.Asm.mov(...)</c>.</summary>
    internal Assembler Asm => assembler;

    /// <summary>Instructions so far, each with its meaning; their offsets are not known yet.</summary>
    internal IReadOnlyList<ImplantAddress> Points
    {
        get
        {
            NotePoints();
            return points;
        }
    }

    /// <summary>Reads a field of the vCPU's page.</summary>
    internal void Load(AssemblerRegister64 target, VcpuPageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Mov_r64_rm64, target, Operand(field)));

    /// <summary>Reads the low half of a field; the register's upper half becomes 0.</summary>
    internal void Load(AssemblerRegister32 target, VcpuPageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Mov_r32_rm32, target, Operand(field)));

    /// <summary>Reads the low 2 bytes of a field; the rest of the register stays.</summary>
    internal void Load(AssemblerRegister16 target, VcpuPageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Mov_r16_rm16, target, Operand(field)));

    /// <summary>Writes a field.</summary>
    internal void Store(VcpuPageField field, AssemblerRegister64 source) =>
        assembler.AddInstruction(Instruction.Create(Code.Mov_rm64_r64, Operand(field), source));

    /// <summary>Writes a value to a field.</summary>
    internal void Store(VcpuPageField field, int value) =>
        assembler.AddInstruction(Instruction.Create(Code.Mov_rm64_imm32, Operand(field), value));

    /// <summary>Exchanges a register with a field, in one instruction.</summary>
    internal void Exchange(VcpuPageField field, AssemblerRegister64 register) =>
        assembler.AddInstruction(Instruction.Create(Code.Xchg_rm64_r64, Operand(field), register));

    /// <summary>Reads the upper half of a field; the register's upper half becomes 0.</summary>
    internal void LoadUpper(AssemblerRegister32 target, VcpuPageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Mov_r32_rm32, target, Operand(VcpuPage.Address(field) + sizeof(uint))));

    /// <summary>Sets a register to an address within reach of implants.</summary>
    internal void LoadAddress(AssemblerRegister64 target, ulong address) =>
        assembler.AddInstruction(Instruction.Create(Code.Lea_r64_m, target, Operand(address)));

    /// <summary>Compares a register with a field.</summary>
    internal void Compare(AssemblerRegister64 register, VcpuPageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Cmp_r64_rm64, register, Operand(field)));

    /// <summary>Compares a register with the low half of a field.</summary>
    internal void Compare(AssemblerRegister32 register, VcpuPageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Cmp_r32_rm32, register, Operand(field)));

    /// <summary>Reads the lowest byte of a field; the rest of the register stays.</summary>
    internal void Load(AssemblerRegister8 target, VcpuPageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Mov_r8_rm8, target, Operand(field)));

    /// <summary>Writes the lowest byte of a field.</summary>
    internal void Store(VcpuPageField field, AssemblerRegister8 source) =>
        assembler.AddInstruction(Instruction.Create(Code.Mov_rm8_r8, Operand(field), source));

    /// <summary>Reads a field of the devices' page.</summary>
    internal void Load(AssemblerRegister64 target, DevicePageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Mov_r64_rm64, target, Operand(field)));

    /// <summary>Writes a field of the devices' page.</summary>
    internal void Store(DevicePageField field, AssemblerRegister64 source) =>
        assembler.AddInstruction(Instruction.Create(Code.Mov_rm64_r64, Operand(field), source));

    /// <summary>Compares a register with the low half of a field of the devices' page.</summary>
    internal void Compare(AssemblerRegister32 register, DevicePageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Cmp_r32_rm32, register, Operand(field)));

    /// <summary>Subtracts the low half of a field of the devices' page from a register.</summary>
    internal void Subtract(AssemblerRegister32 register, DevicePageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Sub_r32_rm32, register, Operand(field)));

    /// <summary>The address of a field of the devices' page.</summary>
    internal void LoadAddress(AssemblerRegister64 target, DevicePageField field) =>
        assembler.AddInstruction(Instruction.Create(Code.Lea_r64_m, target, Operand(field)));

    /// <summary>Keeps the flags in Scratch2. RAX must be free, and is not kept.</summary>
    internal void SaveFlags()
    {
        assembler.lahf();
        assembler.seto(al);
        Store(VcpuPageField.Scratch2, rax);
    }

    /// <summary>Gives the flags back. RAX must be free.</summary>
    internal void RestoreFlags()
    {
        // Overflows exactly when OF was set; SAHF sets the others.
        const sbyte Overflowing = 0x7F;
        Load(rax, VcpuPageField.Scratch2);
        assembler.add(al, Overflowing);
        assembler.sahf();
    }

    /// <summary>Loads CR3 with the root in RAX, through the monitor.</summary>
    internal void LoadRoot()
    {
        Label next = assembler.CreateLabel();
        Store(VcpuPageField.Scratch3, rcx);
        assembler.lea(rcx, __[next]);
        Store(VcpuPageField.GateReturn, rcx);
        Load(rcx, VcpuPageField.Scratch3);
        assembler.jmp(MachineLayout.RootGate);
        assembler.Label(ref next);
    }

    /// <summary>The flags in RAX are user code's from now on: IF to the virtual one, all into the frame of the return.</summary>
    /// <param name="emulate">Where to go when they are rare, or an interrupt waits for IF. RAX and RCX are free.</param>
    internal void LoadUserFlags(Label emulate)
    {
        Label set = assembler.CreateLabel();
        assembler.test(eax, (int)RareFlags.OnReturn);
        assembler.jne(emulate);
        assembler.mov(ecx, eax);
        assembler.and(ecx, (int)Rflags.Interrupt);
        assembler.je(set);
        Load(rcx, VcpuPageField.InterruptPending);
        assembler.test(rcx, rcx);
        assembler.jne(emulate);
        assembler.mov(ecx, (int)Rflags.Interrupt);
        assembler.Label(ref set);
        Store(VcpuPageField.InterruptFlag, rcx);
        Store(VcpuPageField.IoPrivilege, 0);
        assembler.or(eax, (int)Rflags.Interrupt);
        Store(VcpuPageField.ReturnFlags, rax);
    }

    /// <summary>
    /// Returns to user code through the monitor. The frame's RIP, RSP and RFLAGS are in the vCPU's page; RAX and RCX in Scratch0 and
    /// Scratch1, and free here; every other register is the user code's.
    /// </summary>
    internal void ReturnToUser()
    {
        Store(VcpuPageField.ReturnCs, MonitorSegments.UserCodeSelector);
        Store(VcpuPageField.CodeSelector, MonitorSegments.UserCodeSelector);
        Store(VcpuPageField.ReturnSs, MonitorSegments.UserDataSelector);
        Store(VcpuPageField.StackSelector, MonitorSegments.UserDataSelector);
        Load(rax, VcpuPageField.Scratch0);
        Store(VcpuPageField.ReturnRax, rax);
        Load(rcx, VcpuPageField.Scratch1);
        Load(rax, VcpuPageField.UserRoot);

        // Last: from here on the VMM takes the vCPU for one in user mode.
        Store(VcpuPageField.PrivilegeLevel, UserPrivilege);
        assembler.jmp(MachineLayout.UserGate);
    }

    /// <summary>Begins the code for a guest instruction.</summary>
    internal void Begin(ulong address)
    {
        NotePoints();
        guestAddress = address;
        atStart = true;
        saved = false;
    }

    /// <summary>Leaves the instruction to the VMM. All registers must be as they were before it.</summary>
    internal void Emulate()
    {
        NotePoints();
        assembler.hlt();
        if (atStart)
        {
            // The trap is all that there is: it stands for the instruction itself.
            return;
        }

        points.Add(new ImplantAddress(0, guestAddress, ImplantPoint.Emulate, RegistersSaved: false));
    }

    /// <summary>Keeps RAX and RCX in Scratch0 and Scratch1: both are free until <see cref="Restore"/>.</summary>
    internal void Save()
    {
        Store(VcpuPageField.Scratch0, rax);
        Store(VcpuPageField.Scratch1, rcx);
        NotePoints();
        saved = true;
    }

    /// <summary>Gives RAX and RCX back.</summary>
    internal void Restore()
    {
        Load(rcx, VcpuPageField.Scratch1);
        Load(rax, VcpuPageField.Scratch0);
        NotePoints();
        saved = false;
    }

    /// <summary>The next guest instruction is in the shadow of this one.</summary>
    internal void ShadowNext()
    {
        NotePoints();
        shadowed = true;
    }

    /// <summary>The guest's own instruction, moved.</summary>
    internal void Move(in Instruction instruction) => assembler.AddInstruction(instruction);

    // Relative to RIP: an absolute address in 32 bits reaches only the last 2 GiB.
    private static MemoryOperand Operand(ulong address) => new(Register.RIP, (long)address, sizeof(ulong));

    private static MemoryOperand Operand(VcpuPageField field) => Operand(VcpuPage.Address(field));

    private static MemoryOperand Operand(DevicePageField field) =>
        new(Register.RIP, (long)DevicePage.Address(field), sizeof(ulong));

    private void NotePoints()
    {
        while (points.Count < assembler.Instructions.Count)
        {
            ImplantPoint point = !atStart ? ImplantPoint.Inner : shadowed ? ImplantPoint.Shadowed : ImplantPoint.Exact;
            points.Add(new ImplantAddress(0, guestAddress, point, saved));
            if (atStart)
            {
                atStart = false;
                shadowed = false;
            }
        }
    }
}
