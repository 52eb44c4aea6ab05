using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Patching;

/// <summary>
/// The gates: breakpoints at addresses that the monitor knows, for what takes CPL 0. An event on the way through a gate is no event of the
/// guest's: the whole gate counts as the middle of a template.
/// <list type="bullet">
/// <item>
/// <see cref="MachineLayout.UserGate"/>: RAX is the user view's root, the fields from <see cref="VcpuPageField.ReturnRax"/> on hold RAX
/// and the frame of the return; the monitor loads CR3 and returns there.
/// </item>
/// <item>
/// <see cref="MachineLayout.RootGate"/>: RAX is a kernel view's root; the monitor loads CR3, and the code at
/// <see cref="VcpuPageField.GateReturn"/> goes on.
/// </item>
/// </list>
/// </summary>
internal static class MonitorGates
{
    /// <summary>The gates' code.</summary>
    internal static IEnumerable<EncodedImplant> All()
    {
        Assembler user = new(64);
        user.int3();
        user.hlt();
        yield return Encode(user, MachineLayout.UserGate);
        Assembler root = new(64);
        root.int3();
        root.AddInstruction(Instruction.Create(
            Code.Jmp_rm64, new MemoryOperand(Register.RIP, (long)VcpuPage.Address(VcpuPageField.GateReturn), sizeof(ulong))));
        yield return Encode(root, MachineLayout.RootGate);
    }

    private static EncodedImplant Encode(Assembler code, ulong address)
    {
        using MemoryStream bytes = new();
        AssemblerResult result = code.Assemble(new StreamCodeWriter(bytes), address, BlockEncoderOptions.ReturnNewInstructionOffsets);
        return new EncodedImplant(
            address,
            [.. bytes.ToArray()],
            [
                .. result.Result[0].NewInstructionOffsets.Select(offset =>
                    new ImplantAddress((int)offset, GuestAddress: 0, ImplantPoint.Inner, RegistersSaved: false)),
            ]);
    }
}
