using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// CPUID: the answer from the vCPU's <see cref="CpuidTable"/>, which the VMM keeps as its emulation would answer; a question that is not
/// in it is left to the VMM.
/// <code>
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// lahf
/// seto al
/// mov [Scratch2], rax
/// lea rcx, [table]
/// next: mov eax, [rcx + 4]        ; number of functions; 0 at the end
/// test eax, eax
/// jz emulate
/// mov eax, [Scratch0]
/// sub eax, [rcx + 0]              ; function
/// cmp eax, [rcx + 4]
/// jae other
/// mov eax, [Scratch1]
/// and eax, [rcx + 12]             ; mask of the index
/// cmp eax, [rcx + 8]              ; index
/// je found
/// other: add rcx, 32
/// jmp next
/// found: mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// mfence
/// lfence
/// mov eax, [rcx + 16]
/// mov ebx, [rcx + 20]
/// mov edx, [rcx + 28]
/// mov ecx, [rcx + 24]
/// jmp done
/// emulate: mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// hlt
/// done:
/// </code>
/// </summary>
/// <remarks>
/// CPUID serializes: what came before is done and visible, and what comes after is fetched anew. MFENCE and LFENCE keep the first
/// half, for memory, devices and time stamps. The second half is about code that was changed. The vCPU's own changes of a frame that
/// runs kernel code exit, and the entry after that serializes; another vCPU's changes need every vCPU to exit before the frame runs again
/// anyway, for it is scanned anew.
/// </remarks>
internal sealed class Cpuid : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "cpuid";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) => instruction.Mnemonic == Mnemonic.Cpuid;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        Label next = asm.CreateLabel();
        Label other = asm.CreateLabel();
        Label found = asm.CreateLabel();
        Label emulate = asm.CreateLabel();
        Label done = asm.CreateLabel();
        code.Save();
        code.SaveFlags();
        code.LoadAddress(rcx, MachineLayout.CpuidPageAddress);
        asm.Label(ref next);
        asm.mov(eax, __dword_ptr[rcx + CpuidTableEntry.FunctionsOffset]);
        asm.test(eax, eax);
        asm.je(emulate);
        code.Load(eax, VcpuPageField.Scratch0);
        asm.sub(eax, __dword_ptr[rcx + CpuidTableEntry.FunctionOffset]);
        asm.cmp(eax, __dword_ptr[rcx + CpuidTableEntry.FunctionsOffset]);
        asm.jae(other);
        code.Load(eax, VcpuPageField.Scratch1);
        asm.and(eax, __dword_ptr[rcx + CpuidTableEntry.IndexMaskOffset]);
        asm.cmp(eax, __dword_ptr[rcx + CpuidTableEntry.IndexOffset]);
        asm.je(found);
        asm.Label(ref other);
        asm.add(rcx, CpuidTableEntry.Bytes);
        asm.jmp(next);
        asm.Label(ref found);
        code.RestoreFlags();
        asm.mfence();
        asm.lfence();
        asm.mov(eax, __dword_ptr[rcx + CpuidTableEntry.EaxOffset]);
        asm.mov(ebx, __dword_ptr[rcx + CpuidTableEntry.EbxOffset]);
        asm.mov(edx, __dword_ptr[rcx + CpuidTableEntry.EdxOffset]);
        asm.mov(ecx, __dword_ptr[rcx + CpuidTableEntry.EcxOffset]);
        asm.jmp(done);
        asm.Label(ref emulate);
        code.RestoreFlags();
        code.Restore();
        code.Emulate();
        asm.Label(ref done);
        asm.nop();
    }
}
