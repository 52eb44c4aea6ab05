using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// OUT of AL to the port in DX: a byte for the device that offers its ring at that port goes there, as <see cref="DevicePage"/> says. Every
/// other port, a device that wants to see each byte, a full ring and a ring that another vCPU is about to fill are left to the VMM. Of the
/// instructions between those that save and restore RDX none can fault.
/// <code>
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// lahf
/// seto al
/// mov [Scratch2], rax
/// movzx ecx, dx
/// cmp ecx, [TransmitPort]
/// jne emulate
/// mov [Scratch3], rdx
/// mov rdx, [Tail]
/// mov ecx, edx                    ; the position's entry
/// shr ecx, 6
/// and ecx, 7F8h
/// lea rax, [Ring]
/// lea rcx, [rax + rcx]
/// mov rax, rdx                    ; empty, for this position
/// or rdx, 100h                    ; full
/// mov dl, [Scratch0]
/// lock cmpxchg [rcx], rdx
/// jne busy
/// lea rax, [rax + 200h]           ; the next position
/// mov [Tail], rax
/// mov rdx, [Scratch3]
/// mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// jmp done
/// busy: mov rdx, [Scratch3]
/// emulate: mov rax, [Scratch2]
/// add al, 7Fh
/// sahf
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// hlt
/// done:
/// </code>
/// </summary>
internal sealed class PortOut : ImplantTemplate
{
    private const byte PositionToOffset = DevicePage.PositionShift - 3;
    private const int OffsetMask = (DevicePage.RingEntries - 1) * sizeof(ulong);

    /// <inheritdoc/>
    internal override string Name => "port-out";

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) => instruction.Code == Code.Out_DX_AL;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        Label busy = asm.CreateLabel();
        Label emulate = asm.CreateLabel();
        Label done = asm.CreateLabel();
        code.Save();
        code.SaveFlags();
        asm.movzx(ecx, dx);
        code.Compare(ecx, DevicePageField.TransmitPort);
        asm.jne(emulate);
        code.Store(VcpuPageField.Scratch3, rdx);
        code.Load(rdx, DevicePageField.Tail);
        asm.mov(ecx, edx);
        asm.shr(ecx, PositionToOffset);
        asm.and(ecx, OffsetMask);
        code.LoadAddress(rax, DevicePageField.Ring);
        asm.lea(rcx, __qword_ptr[rax + rcx]);
        asm.mov(rax, rdx);
        asm.or(rdx, (int)DevicePage.EntryFull);
        code.Load(dl, VcpuPageField.Scratch0);
        asm.@lock.cmpxchg(__qword_ptr[rcx], rdx);
        asm.jne(busy);
        asm.lea(rax, __qword_ptr[rax + (int)DevicePage.PositionStep]);
        code.Store(DevicePageField.Tail, rax);
        code.Load(rdx, VcpuPageField.Scratch3);
        code.RestoreFlags();
        code.Restore();
        asm.jmp(done);
        asm.Label(ref busy);
        code.Load(rdx, VcpuPageField.Scratch3);
        asm.Label(ref emulate);
        code.RestoreFlags();
        code.Restore();
        code.Emulate();
        asm.Label(ref done);
        asm.nop();
    }
}
