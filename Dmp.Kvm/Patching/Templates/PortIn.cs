using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// IN to AL from the port in DX: a register that a device offers to be read comes from the devices' page. Every other port, and a
/// register whose reading would have an effect now, is left to the VMM.
/// <code>
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// lahf
/// seto al
/// mov [Scratch2], rax
/// movzx ecx, dx
/// sub ecx, [RegisterBase]
/// cmp ecx, 8
/// jae emulate
/// lea rax, [Registers]
/// mov rax, [rax + rcx*8]
/// test eax, 100h                  ; readable
/// je emulate
/// mov [Scratch0], al              ; the lowest byte
/// mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
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
internal sealed class PortIn : ImplantTemplate
{
    /// <inheritdoc/>
    internal override string Name => "port-in";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) => instruction.Code == Code.In_AL_DX;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        Label emulate = asm.CreateLabel();
        Label done = asm.CreateLabel();
        code.Save();
        code.SaveFlags();
        asm.movzx(ecx, dx);
        code.Subtract(ecx, DevicePageField.RegisterBase);
        asm.cmp(ecx, DevicePage.RegisterCount);
        asm.jae(emulate);
        code.LoadAddress(rax, DevicePageField.Registers);
        asm.mov(rax, __qword_ptr[rax + (rcx * sizeof(ulong))]);
        asm.test(eax, (int)DevicePage.RegisterReadable);
        asm.je(emulate);
        code.Store(VcpuPageField.Scratch0, al);
        code.RestoreFlags();
        code.Restore();
        asm.jmp(done);
        asm.Label(ref emulate);
        code.RestoreFlags();
        code.Restore();
        code.Emulate();
        asm.Label(ref done);
        asm.nop();
    }
}
