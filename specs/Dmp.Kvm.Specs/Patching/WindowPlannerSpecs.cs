using System.Collections.Immutable;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Patching;
using FsCheck.Xunit;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Patching;

public class WindowPlannerSpecs
{
    private const ulong Base = FakeText.Base;
    private const byte Int3 = 0xCC;

    private static readonly TemplateSet Templates = new(new TemplateHost(FsGsBase: true), new HashSet<string>());

    [Property(
        DisplayName = "In random functions a window is whole instructions of one page around the site, no branch leads behind its first"
            + " byte, it has room for its jump, and what runs in the implant instead is the same; a refusal has a reason",
        MaxTest = 500)]
    public void Functions(int seed)
    {
        Random random = new(seed);
        (byte[] code, int[] functions) = Code(random);
        FakeText text = new(code, functions);
        Dictionary<ulong, Instruction> all = Decode(code, functions);
        foreach (Instruction site in all.Values.Where(instruction => Templates.Find(instruction) is not null))
        {
            switch (new WindowPlanner(text, Templates).Plan(site.IP))
            {
                case PlanResult.Planned(PatchPlan plan):
                    Check(plan, site, code, functions, all);
                    break;
                case PlanResult.Refused refused:
                    Assert.NotEmpty(refused.Reason);
                    Assert.Equal(code.AsSpan((int)(site.IP - Base), site.Length).ToArray(), refused.Bytes.ToArray());
                    break;
                default:
                    Assert.Fail("neither planned nor refused");
                    break;
            }
        }
    }

    [Fact(DisplayName = "Where no five bytes can move, a short jump leads to padding, and a boundary inside of it is a faulting byte")]
    public void Springboard()
    {
        // cli; inc ecx; jmp cli: the jump cannot move, which leaves three bytes.
        byte[] code = Page("FA FF C1 EB FB");
        PatchPlan plan = Planned(new FakeText(code, 0, 0x100), Base);
        Springboard springboard = Assert.IsType<Springboard>(plan.Springboard);
        long displacement = (long)(springboard.Address - (plan.Window + 2));
        Assert.InRange(springboard.Address, Base + 5, Base + 0x100 - 5);
        Assert.True(DisplacementConstraint.FaultingBytes.Contains((byte)displacement));
    }

    [Fact(DisplayName = "No springboard lies where one is already")]
    public void Reserved_springboard()
    {
        byte[] code = Page("FA FF C1 EB FE");
        FakeText text = new(code, 0, 0x100);
        while (new WindowPlanner(text, Templates).Plan(Base) is PlanResult.Planned { Plan.Springboard: { } springboard })
        {
            Assert.True(text.Reserved.Add(springboard.Address));
        }

        Assert.NotEmpty(text.Reserved);
        PlanResult.Refused refused = Assert.IsType<PlanResult.Refused>(new WindowPlanner(text, Templates).Plan(Base));
        Assert.Equal("no five bytes that can be moved, and no padding in reach", refused.Reason);
    }

    [Fact(DisplayName = "A byte that happens to be the short jump's displacement stays, unless a trap must stand there")]
    public void Byte_behind()
    {
        // cli; then a call that cannot move, whose opcode is no displacement to padding: -24. Padding lies before it.
        byte[] code = Page("50 C3");
        Hex("FA E8 00 00 00 00 C3").CopyTo(code, 0x40);
        PatchPlan plan = Planned(new FakeText(code, 0, 0x40, 0x80), Base + 0x40);
        Assert.Equal(Base + 0x42 - 24, plan.Springboard?.Address);
        Assert.Equal([0xFA, 0xE8], plan.Original.ToArray());

        // iretd, -49, is silent: a trap stands on it, and must go on standing there.
        Hex("FA CF").CopyTo(code, 0x40);
        _ = Assert.IsType<PlanResult.Refused>(new WindowPlanner(new FakeText(code, 0, 0x40, 0x80), Templates).Plan(Base + 0x40));
    }

    [Theory(DisplayName = "The code of a function that is too long to be read as a whole is no padding")]
    [InlineData("C3")]
    [InlineData("E9 00 00 00 00")]
    public void Long_function(string leaving)
    {
        const int Read = 0x4000;
        byte[] code = new byte[Read + 0x100];
        code.AsSpan().Fill(0x90);
        byte[] end = Hex(leaving);
        end.CopyTo(code, Read - end.Length);
        code[^0x81] = 0xC3;

        // cli; inc ecx; jmp cli.
        code.AsSpan(Read + 0x80).Fill(0x50);
        Hex("FA FF C1 EB FB").CopyTo(code, Read + 0x80);
        FakeText text = new(code, 0, Read + 0x80);
        _ = Assert.IsType<PlanResult.Refused>(new WindowPlanner(text, Templates).Plan(Base + Read + 0x80));
    }

    [Theory(DisplayName = "What cannot be patched is refused, with the reason")]
    [InlineData("90", "no template for nop")]
    [InlineData("06", "no template for (bad)")]
    [InlineData("FA E8 00 00 00 00", "no five bytes that can be moved, and no padding in reach")]
    public void Refused(string hex, string reason)
    {
        byte[] code = [.. Hex(hex), .. Enumerable.Repeat((byte)0x50, 200)];
        PlanResult.Refused refused =
            Assert.IsType<PlanResult.Refused>(new WindowPlanner(new FakeText(code, 0), Templates).Plan(Base));
        Assert.Equal(reason, refused.Reason);
    }

    [Fact(DisplayName = "Code that cannot be read is refused")]
    public void Unreadable()
    {
        PlanResult.Refused refused =
            Assert.IsType<PlanResult.Refused>(new WindowPlanner(new FakeText([0xFA], 0), Templates).Plan(Base + 1));
        Assert.Equal("the code cannot be read", refused.Reason);
        Assert.Empty(refused.Bytes);
    }

    [Fact(DisplayName = "A nop that the guest compares later stays where it is")]
    public void Compared_nop()
    {
        byte[] code = [.. Hex("FA 0F 1F 44 00 00"), .. Enumerable.Repeat((byte)0x50, 200)];
        FakeText text = new(code, 0);
        Assert.Equal(6, Planned(text, Base).Original.Length);
        _ = text.Compared.Add(Base + 1);
        _ = Assert.IsType<PlanResult.Refused>(new WindowPlanner(text, Templates).Plan(Base));
    }

    [Fact(DisplayName = "STI and the HLT in its shadow stay together")]
    public void Shadow()
    {
        byte[] code = [.. Hex("48 89 C8 90 FB F4 50 50 50 50 50 50"), .. Enumerable.Repeat((byte)0x50, 200)];
        PatchPlan plan = Planned(new FakeText(code, 0), Base + 4);
        Assert.True(plan.Window <= Base + 4 && plan.End >= Base + 6);
    }

    private static void Check(
        PatchPlan plan, Instruction site, byte[] code, int[] functions, Dictionary<ulong, Instruction> all)
    {
        Assert.Equal(site.IP, plan.Site);
        Assert.True(plan.Window <= site.IP && site.NextIP <= plan.End);
        Assert.Equal(code.AsSpan((int)(plan.Window - Base), plan.Original.Length).ToArray(), plan.Original.ToArray());
        Assert.Equal(plan.Window >> Paging.PageShift, (plan.End - 1) >> Paging.PageShift);
        Assert.True(plan.Original.Length >= (plan.Springboard is null ? ImplantEncoder.JumpLength : ImplantEncoder.ShortJumpLength));
        Assert.DoesNotContain(Targets(functions, all, site.IP), target => target > plan.Window && target < plan.End);

        // Whole instructions, in one function, up to a return behind which padding stands.
        List<Instruction> window = [];
        ulong at = plan.Window;
        while (at < plan.End && (window.Count == 0 || window[^1].FlowControl != FlowControl.Return))
        {
            Instruction instruction = all[at];
            if (instruction.NextIP > plan.End)
            {
                // A byte that is the same in the jump.
                Assert.NotNull(plan.Springboard);
                break;
            }

            window.Add(instruction);
            at = instruction.NextIP;
        }

        for (; at < plan.End && plan.Springboard is null; at = all[at].NextIP)
        {
            Assert.True(all[at].Mnemonic is Mnemonic.Int3 or Mnemonic.Nop);
        }

        Assert.DoesNotContain(functions, start => Base + (ulong)start > plan.Window && Base + (ulong)start < plan.End);
        Assert.Equal(
            window.Select(instruction => Templates.Find(instruction)?.Name).OfType<string>(), plan.Templates.Select(use => use.Name));

        // The boundaries that a saved RIP may point to.
        int[] boundaries = [.. window.Select(instruction => (int)(instruction.IP - plan.Window))];
        if (plan.Springboard is { } springboard)
        {
            ImmutableArray<byte> jump = ImplantEncoder.ShortJump(plan.Window, plan.Original.AsSpan(), springboard.Address);
            Assert.All(boundaries[1..], boundary => Assert.Contains(jump[boundary], DisplacementConstraint.FaultingBytes.ToArray()));
            Assert.Equal(plan.Window >> Paging.PageShift, (springboard.Address + 4) >> Paging.PageShift);
            for (ulong address = springboard.Address; address < springboard.Address + ImplantEncoder.JumpLength; address++)
            {
                Assert.Equal(Int3, code[address - Base]);
                Assert.DoesNotContain(address, Targets(functions, all, address));
            }
        }

        EncodedImplant? implant = ImplantEncoder.Encode([.. window], Templates, MachineLayout.ArenaBase + 0x4560, out string reason);
        Assert.True(implant is not null, reason);
        SameCode(window, implant);
    }

    /// <summary>Where the branches of a function lead. Those of others are not known; see <see cref="DisplacementConstraint"/>.</summary>
    private static HashSet<ulong> Targets(int[] functions, Dictionary<ulong, Instruction> all, ulong address)
    {
        int index = Array.FindLastIndex(functions, start => Base + (ulong)start <= address);
        ulong first = Base + (ulong)functions[index];
        ulong end = index + 1 < functions.Length ? Base + (ulong)functions[index + 1] : ulong.MaxValue;
        return
        [
            .. all.Values
                .Where(branch => branch.IP >= first && branch.IP < end && branch.Op0Kind == OpKind.NearBranch64)
                .Select(branch => branch.NearBranchTarget),
        ];
    }

    private static void SameCode(List<Instruction> window, EncodedImplant implant)
    {
        ImmutableArray<Instruction> implanted = ImplantEncoder.Decode(implant.Address, implant.Code.AsSpan());
        foreach (Instruction instruction in window.Where(instruction => Templates.Find(instruction) is null))
        {
            Instruction[] moved =
                [.. implanted.Where((_, index) => implant.Points[index].GuestAddress == instruction.IP)];
            Instruction other = Assert.Single(moved);
            if (SilentInstructions.IsSilent(instruction))
            {
                Assert.Equal(Mnemonic.Hlt, other.Mnemonic);
                continue;
            }

            // The same but for where it stands: Iced keeps the target of a RIP-relative operand, not its displacement.
            Assert.Equal(instruction.Code, other.Code);
            Assert.Equal(instruction.ToString(), other.ToString());
            Assert.Equal(instruction.IsIPRelativeMemoryOperand, other.IsIPRelativeMemoryOperand);
            Assert.Equal(instruction.IPRelativeMemoryAddress, other.IPRelativeMemoryAddress);
        }

        if (window[^1].FlowControl != FlowControl.Return)
        {
            Assert.Equal(Mnemonic.Jmp, implanted[^1].Mnemonic);
            Assert.Equal(window[^1].NextIP, implanted[^1].NearBranchTarget);
        }
    }

    /// <summary>Some functions with branches, and INT3 between them.</summary>
    private static (byte[] Code, int[] Functions) Code(Random random)
    {
        List<byte> code = [];
        List<int> functions = [];
        code.AddRange(Enumerable.Repeat(Int3, random.Next(2) * random.Next(4000, 4080)));
        for (int function = 0; function < 4; function++)
        {
            functions.Add(code.Count);
            code.AddRange(Function(random, Base + (ulong)code.Count));
            code.AddRange(Enumerable.Repeat(Int3, random.Next(3) * random.Next(9)));
        }

        return ([.. code], [.. functions]);
    }

    private static byte[] Function(Random random, ulong address)
    {
        Assembler a = new(64);
        int length = random.Next(2, 25);
        Label[] labels = [.. Enumerable.Range(0, length).Select(_ => a.CreateLabel())];
        for (int index = 0; index < length; index++)
        {
            Label here = labels[index];
            a.Label(ref here);
            labels[index] = here;
            Emit(a, random, labels);
        }

        if (random.Next(2) == 0)
        {
            a.ret();
        }
        else
        {
            a.jmp(labels[random.Next(length)]);
        }

        using MemoryStream stream = new();
        a.Assemble(new StreamCodeWriter(stream), address);
        return stream.ToArray();
    }

    private static void Emit(Assembler a, Random random, Label[] labels)
    {
        switch (random.Next(20))
        {
            case 0 or 1: a.cli(); break;
            case 2: a.sti(); break;
            case 3: a.pushfq(); break;
            case 4: a.popfq(); break;
            case 5: a.mov(rax, cr3); break;
            case 6: a.swapgs(); break;
            case 7: a.mov(eax, cs); break;
            case 8: a.cpuid(); break;
            case 9: a.jne(labels[random.Next(labels.Length)]); break;
            case 10: a.call(Base + (ulong)random.Next(0x1000)); break;
            case 11: a.ret(); break;
            case 12: a.nop(); break;
            case 13: a.AddInstruction(RelativeLoad(random)); break;
            case 14: a.push(rbx); break;
            case 15: a.mov(__qword_ptr[rdi + 8], rcx); break;
            case 16: a.mov(rax, __qword_ptr.gs[rcx]); break;
            case 17: a.mov(ecx, random.Next()); break;
            case 18: a.hlt(); break;
            default: a.@lock.inc(__dword_ptr[rdx + (rcx * 4)]); break;
        }
    }

    private static Instruction RelativeLoad(Random random) => Instruction.Create(
        Iced.Intel.Code.Mov_r64_rm64,
        rdx,
        new MemoryOperand(Register.RIP, (long)(Base + (ulong)random.Next(0x10_0000)), sizeof(ulong)));

    private static Dictionary<ulong, Instruction> Decode(byte[] code, int[] functions)
    {
        Dictionary<ulong, Instruction> all = [];
        for (int index = 0; index < functions.Length; index++)
        {
            int end = index + 1 < functions.Length ? functions[index + 1] : code.Length;
            ImmutableArray<Instruction> function =
                ImplantEncoder.Decode(Base + (ulong)functions[index], code.AsSpan(functions[index], end - functions[index]));
            foreach (Instruction instruction in function)
            {
                all.Add(instruction.IP, instruction);
            }
        }

        return all;
    }

    private static PatchPlan Planned(FakeText text, ulong site)
    {
        PlanResult result = new WindowPlanner(text, Templates).Plan(site);
        Assert.True(result is PlanResult.Planned, result.ToString());
        return ((PlanResult.Planned)result).Plan;
    }

    private static byte[] Page(string hex)
    {
        byte[] page = new byte[0x200];
        page.AsSpan().Fill(Int3);
        Hex(hex).CopyTo(page, 0);
        return page;
    }

    private static byte[] Hex(string hex) => Convert.FromHexString(hex.Replace(" ", "", StringComparison.Ordinal));
}
