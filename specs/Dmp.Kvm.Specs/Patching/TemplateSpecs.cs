using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;
using Dmp.Kvm.Specs.Machine;
using FsCheck;
using FsCheck.Fluent;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>Each template against the emulated original, on the processor.</summary>
[Collection(KvmMachineCollection.Name)]
public class TemplateSpecs
{
    private const int States = 2000;
    private const int PieceSize = 64;
    private const int Nops = 4;

    private static readonly Arbitrary<int> Seeds = Gen.Choose(int.MinValue, int.MaxValue).ToArbitrary();

    public static TheoryData<string> Templates => [.. TemplateCase.All.Select(known => known.Template)];

    [Fact(DisplayName = "Every template that exists is compared with the instruction it replaces")]
    public void Complete() => Assert.Equal(
        typeof(ImplantTemplate).Assembly.GetTypes()
            .Where(type => type.IsSubclassOf(typeof(ImplantTemplate)))
            .Select(type => ((ImplantTemplate)Activator.CreateInstance(type)!).Name)
            .Order(StringComparer.Ordinal),
        TemplateCase.All.Select(known => known.Template).Order(StringComparer.Ordinal));

    [SkippableTheory(DisplayName = "An implant leaves registers, flags, memory and the virtual CPU as the emulated original does")]
    [MemberData(nameof(Templates))]
    public void Same(string template)
    {
        TemplateCase known = TemplateCase.All.Single(one => one.Template == template);
        Pieces pieces = new(known);
        using PatchRig trapped = pieces.Load(patching: false);
        using PatchRig patched = pieces.Load(patching: true);
        foreach (ulong site in pieces.Sites)
        {
            _ = patched.Patch(site);
        }

        long before = patched.Emulations;
        Check.One(Config.QuickThrowOnFailure.WithMaxTest(States), Prop.ForAll(Seeds, seed =>
        {
            Random random = new(seed);
            GuestState state = GuestState.Any(random, pieces.Sites[random.Next(pieces.Sites.Length)]);
            known.Arrange(state, random);
            GuestResult original = trapped.Run(state);
            string difference = original.Difference(patched.Run(state), known.Dead(state, original));
            Assert.True(difference.Length == 0, difference);
        }));

        // An original and its mark are two emulations; what ends at a handler or mark alone was done by the implant.
        Assert.InRange(patched.Emulations - before, States, States * 9 / 5);
    }

    /// <summary>A case's instructions, each in a piece of code of its own that ends with a mark.</summary>
    private sealed class Pieces
    {
        private readonly TemplateCase known;
        private readonly byte[] code = new byte[PatchRig.CodePages * 4096];
        private readonly List<ulong> marks = [TemplateCase.Landing];

        internal Pieces(TemplateCase known)
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

        private static byte[] Assemble(Action<Assembler> instruction, bool leaves)
        {
            Assembler assembler = new(64);
            instruction(assembler);
            for (int nop = 0; nop < Nops && !leaves; nop++)
            {
                assembler.nop();
            }

            using MemoryStream bytes = new();
            _ = assembler.Assemble(new StreamCodeWriter(bytes), PatchRig.Code);
            return bytes.ToArray();
        }
    }
}
