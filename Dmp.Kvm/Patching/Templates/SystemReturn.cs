using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Patching.Templates;

/// <summary>
/// SYSRETQ, through the monitor. Rare flags, an IF that an interrupt waits for and an address that is not user code's are left to the VMM.
/// <code>
/// mov [Scratch0], rax
/// mov [Scratch1], rcx
/// lahf
/// seto al
/// mov [Scratch2], rax
/// mov rax, rcx
/// shr rax, 47                     ; bits 47 to 63 of RIP are clear
/// jnz emulate
/// mov rcx, [SysretSelector]
/// cmp ecx, 33h
/// jne emulate
/// mov rcx, [UserRoot]
/// test rcx, rcx
/// jz emulate
/// mov rax, r11
/// and eax, 3C7FD7h
/// ...                             ; the frame goes to the vCPU's page, and through the gate
/// emulate: mov rax, [Scratch2]     ; the original may fault, and its flags are seen
/// add al, 7Fh
/// sahf
/// mov rcx, [Scratch1]
/// mov rax, [Scratch0]
/// hlt
/// </code>
/// </summary>
internal sealed class SystemReturn : ImplantTemplate
{
    private const byte CanonicalShift = 47;

    // RF and VM are clear after SYSRET (AMD APM vol. 3).
    private const int LoadedFlags = 0x003C_7FD7;

    /// <inheritdoc/>
    internal override string Name => "sysret";

    /// <inheritdoc/>
    internal override int Version => 2;

    /// <inheritdoc/>
    internal override bool Matches(in Instruction instruction, in TemplateHost host) => instruction.Mnemonic == Mnemonic.Sysretq;

    /// <inheritdoc/>
    internal override void Emit(ImplantAssembler code, in Instruction instruction)
    {
        Assembler asm = code.Asm;
        Label emulate = asm.CreateLabel();
        code.Save();
        code.SaveFlags();
        asm.mov(rax, rcx);
        asm.shr(rax, CanonicalShift);
        asm.jne(emulate);
        code.Load(rcx, VcpuPageField.SysretSelector);
        asm.cmp(ecx, MonitorSegments.UserCodeSelector);
        asm.jne(emulate);
        code.Load(rcx, VcpuPageField.UserRoot);
        asm.test(rcx, rcx);
        asm.je(emulate);
        asm.mov(rax, r11);
        asm.and(eax, LoadedFlags);
        code.LoadUserFlags(emulate);
        code.Load(rcx, VcpuPageField.Scratch1);
        code.Store(VcpuPageField.ReturnRip, rcx);
        code.Store(VcpuPageField.ReturnRsp, rsp);
        code.ReturnToUser();
        asm.Label(ref emulate);
        code.RestoreFlags();
        code.Restore();
        code.Emulate();
    }
}
