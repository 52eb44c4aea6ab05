using Dmp.Kvm.Specs.Machine;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>A case's instructions, each in a piece of code of its own that ends with a mark.</summary>
internal sealed class TemplatePieces
{
    private const int PieceSize = 64;
    private const int Nops = 4;

    private readonly TemplateCase known;
    private readonly byte[] code = new byte[PatchRig.CodePages * 4096];
    private readonly List<ulong> marks = [TemplateCase.Landing];

    internal TemplatePieces(TemplateCase known)
    {
        this.known = known;
        const byte Int3 = 0xCC;
        code.AsSpan().Fill(Int3);
        PatchRig.Mark.CopyTo(code.AsSpan((int)(TemplateCase.Landing - PatchRig.Code)));
        Sites = new ulong[known.Instructions.Length];
        for (int index = 0; index < Sites.Length; index++)
        {
            int offset = index * PieceSize;
            Sites[index] = PatchRig.Code + (ulong)offset;
            byte[] piece = Assemble(known.Instructions[index], known.Leaves);
            piece.CopyTo(code, offset);
            if (!known.Leaves)
            {
                PatchRig.Mark.CopyTo(code, offset + piece.Length);
                marks.Add(Sites[index] + (ulong)piece.Length);
            }
        }
    }

    internal ulong[] Sites { get; }

    internal PatchRig Load(bool patching)
    {
        PatchRig rig = new(patching, code, marks);
        foreach (ulong site in Sites.Append(TemplateCase.Landing))
        {
            GuestState state = GuestState.Plain(site);
            known.Arrange(state, new Random(0));
            _ = rig.Run(state);
        }

        return rig;
    }

    private static byte[] Assemble(Action<Assembler> instruction, bool leaves) => TinyMultiboot.Assemble(64, PatchRig.Code, assembler =>
    {
        instruction(assembler);
        for (int nop = 0; nop < Nops && !leaves; nop++)
        {
            assembler.nop();
        }
    });
}
