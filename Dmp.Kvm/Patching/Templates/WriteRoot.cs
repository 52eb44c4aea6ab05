using Dmp.Kvm.Memory;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// MOV to CR3 that names a root which the virtual TLB has, and keeps its entries (bit 63, with CR4.PCIDE) or would fill them as they are
/// (<see cref="CheckedRoot"/>): through the monitor. Every other CR3 load is left to the VMM.
/// <code>
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// mov rcx, reg
/// lahf
/// seto al
/// mov [Scratch2], rax
/// mov rax, [SlowRootLoad]
/// test rax, rax
/// jnz emulate
/// bt rcx, 63
/// jc find
/// cmp rcx, [CheckedRoot]
/// jne emulate
/// mov rax, [CheckedSlot4]         ; and so on for each of the four levels
/// mov rax, [rax]
/// cmp rax, [CheckedEntry4]
/// jne emulate
/// ...
/// bts rcx, 63
/// find: mov rax, [Roots + 0]      ; and so on for each of the eight tags
/// cmp rax, rcx
/// je hit0
/// ...
/// jmp emulate
/// hit0: mov qword [CurrentTag], 0
/// mov rax, [Roots + 16]
/// mov [UserRoot], rax
/// mov rax, [Roots + 8]
/// jmp switch
/// ...
/// switch: btr rcx, 63
/// mov [Cr3], rcx
/// ...                             ; the gate: mov cr3, rax
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
internal sealed class WriteRoot : ImplantTemplate
{
    private const byte KeepEntriesBit = 63;

    /// <inheritdoc/>
    internal override string Name => "write-root";

    /// <inheritdoc/>
    internal override int Version => 2;

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) =>
        instruction.Mnemonic == Mnemonic.Mov && instruction.Op0Register == Register.CR3 && instruction.Op1Register != Register.RSP;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        Label change = asm.CreateLabel();
        Label find = asm.CreateLabel();
        Label emulate = asm.CreateLabel();
        Label done = asm.CreateLabel();
        Label[] hits = new Label[VcpuPage.RootTags];
        code.Save();
        asm.mov(rcx, new AssemblerRegister64(instruction.Op1Register));
        code.SaveFlags();
        code.Load(rax, VcpuPageField.SlowRootLoad);
        asm.test(rax, rax);
        asm.jne(emulate);
        asm.bt(rcx, KeepEntriesBit);
        asm.jb(find);
        code.Compare(rcx, VcpuPageField.CheckedRoot);
        asm.jne(emulate);
        for (int step = 0; step < PageWalk.Levels; step++)
        {
            code.Load(rax, VcpuPage.CheckedSlot(step));
            asm.mov(rax, __[rax]);
            code.Compare(rax, VcpuPage.CheckedSlot(step) + 1);
            asm.jne(emulate);
        }

        asm.bts(rcx, KeepEntriesBit);
        asm.Label(ref find);
        for (int tag = 0; tag < hits.Length; tag++)
        {
            hits[tag] = asm.CreateLabel();
            code.Load(rax, VcpuPage.RootKey(tag));
            asm.cmp(rax, rcx);
            asm.je(hits[tag]);
        }

        asm.jmp(emulate);
        for (int tag = 0; tag < hits.Length; tag++)
        {
            asm.Label(ref hits[tag]);
            code.Store(VcpuPageField.CurrentTag, tag);
            code.Load(rax, VcpuPage.RootKey(tag) + 2);
            code.Store(VcpuPageField.UserRoot, rax);
            code.Load(rax, VcpuPage.RootKey(tag) + 1);
            asm.jmp(change);
        }

        asm.Label(ref change);
        asm.btr(rcx, KeepEntriesBit);
        code.Store(VcpuPageField.Cr3, rcx);
        code.LoadRoot();
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
