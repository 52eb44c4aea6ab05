using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// IRETQ. To the kernel: the processor's own IRETQ, with a frame that returns to CPL 3. The frame's selectors are below the new stack
/// pointer's life: nobody reads them again. To 64-bit user code: through the monitor, which loads the user view. A return to anything
/// else, with rare flags, with an IF that an interrupt waits for, or from an NMI, is left to the VMM.
/// <code>
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// mov rax, [rsp]                  ; RIP
/// mov rcx, [rsp + 8]              ; CS
/// mov rcx, [rsp + 16]             ; RFLAGS
/// mov rcx, [rsp + 24]             ; RSP
/// mov rcx, [rsp + 32]             ; SS
/// lahf
/// seto al
/// mov [Scratch2], rax
/// mov rcx, [NmiBlocked]
/// test rcx, rcx
/// jnz emulate
/// mov rax, [rsp]
/// mov rcx, [rsp + 8]
/// cmp ecx, 33h
/// je user
/// cmp ecx, [CodeSelector]
/// jne emulate
/// mov rcx, [rsp + 32]
/// cmp ecx, [StackSelector]
/// jne emulate
/// sar rax, 47                     ; bits 47 to 63 of RIP are set
/// inc rax
/// jnz emulate
/// mov rax, [rsp + 16]             ; RFLAGS
/// test eax, 67100h
/// jnz emulate
/// and eax, 200h
/// jz set
/// mov rcx, [InterruptPending]
/// test rcx, rcx
/// jnz emulate
/// set: mov [InterruptFlag], rax
/// mov qword [IoPrivilege], 0
/// mov dword [rsp + 8], 33h
/// mov dword [rsp + 32], 2Bh
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// iretq
/// user: shr rax, 47               ; bits 47 to 63 of RIP are clear
/// jnz emulate
/// mov rcx, [rsp + 32]
/// cmp ecx, 2Bh
/// jne emulate
/// mov rcx, [UserRoot]
/// test rcx, rcx
/// jz emulate
/// ...                             ; the frame goes to the vCPU's page, and through the gate
/// emulate: mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// hlt
/// </code>
/// The flags are free to change until IRETQ loads them; where the VMM emulates, IRETQ may fault, and then they are seen.
/// </summary>
internal sealed class InterruptReturn : ImplantTemplate
{
    private const int CodeOffset = 8;
    private const int FlagsOffset = 16;
    private const int StackPointerOffset = 24;
    private const int StackOffset = 32;
    private const byte CanonicalShift = 47;

    /// <inheritdoc/>
    internal override string Name => "iret";

    /// <inheritdoc/>
    internal override int Version => 3;

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) => instruction.Mnemonic == Mnemonic.Iretq;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        Label user = asm.CreateLabel();
        Label set = asm.CreateLabel();
        Label emulate = asm.CreateLabel();
        code.Save();

        // In the processor's order: all of the frame can be read, or the fault is at the word that the processor would name.
        asm.mov(rax, __qword_ptr[rsp]);
        asm.mov(rcx, __qword_ptr[rsp + CodeOffset]);
        asm.mov(rcx, __qword_ptr[rsp + FlagsOffset]);
        asm.mov(rcx, __qword_ptr[rsp + StackPointerOffset]);
        asm.mov(rcx, __qword_ptr[rsp + StackOffset]);
        code.SaveFlags();
        code.Load(rcx, VcpuPageField.NmiBlocked);
        asm.test(rcx, rcx);
        asm.jne(emulate);
        asm.mov(rax, __qword_ptr[rsp]);
        asm.mov(rcx, __qword_ptr[rsp + CodeOffset]);
        asm.cmp(ecx, MonitorSegments.UserCodeSelector);
        asm.je(user);
        code.Compare(ecx, VcpuPageField.CodeSelector);
        asm.jne(emulate);
        asm.mov(rcx, __qword_ptr[rsp + StackOffset]);
        code.Compare(ecx, VcpuPageField.StackSelector);
        asm.jne(emulate);
        asm.sar(rax, CanonicalShift);
        asm.inc(rax);
        asm.jne(emulate);
        asm.mov(rax, __qword_ptr[rsp + FlagsOffset]);
        asm.test(eax, (int)(RareFlags.OnReturn | Rflags.AlignmentCheck));
        asm.jne(emulate);
        asm.and(eax, (int)Rflags.Interrupt);
        asm.je(set);
        code.Load(rcx, VcpuPageField.InterruptPending);
        asm.test(rcx, rcx);
        asm.jne(emulate);
        asm.Label(ref set);
        code.Store(VcpuPageField.InterruptFlag, rax);
        code.Store(VcpuPageField.IoPrivilege, 0);
        asm.mov(__dword_ptr[rsp + CodeOffset], MonitorSegments.UserCodeSelector);
        asm.mov(__dword_ptr[rsp + StackOffset], MonitorSegments.UserDataSelector);
        code.Restore();
        asm.iretq();
        asm.Label(ref user);
        EmitUser(code, emulate);
        asm.Label(ref emulate);
        code.RestoreFlags();
        code.Restore();
        code.Emulate();
    }

    private static void EmitUser(ImplantAssembler code, Label emulate)
    {
        Assembler asm = code.Asm;
        asm.shr(rax, CanonicalShift);
        asm.jne(emulate);
        asm.mov(rcx, __qword_ptr[rsp + StackOffset]);
        asm.cmp(ecx, MonitorSegments.UserDataSelector);
        asm.jne(emulate);
        code.Load(rcx, VcpuPageField.UserRoot);
        asm.test(rcx, rcx);
        asm.je(emulate);
        asm.mov(rax, __qword_ptr[rsp + FlagsOffset]);
        code.LoadUserFlags(emulate);
        asm.mov(rax, __qword_ptr[rsp]);
        code.Store(VcpuPageField.ReturnRip, rax);
        asm.mov(rax, __qword_ptr[rsp + StackPointerOffset]);
        code.Store(VcpuPageField.ReturnRsp, rax);
        code.ReturnToUser();
    }
}
