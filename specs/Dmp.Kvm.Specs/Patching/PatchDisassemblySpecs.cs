using System.Collections.Immutable;
using System.Globalization;
using Dmp.Kvm.Patching;

namespace Dmp.Kvm.Specs.Patching;

public class PatchDisassemblySpecs
{
    private const ulong Site = 0xFFFF_FFFF_8100_0010;

    private static readonly Func<ulong, string?> NoNames = _ => null;

    private static readonly PatchPlan Pushf = new(Site, Site, [0x9c, 0x58, 0x0f, 0x1f, 0x40, 0x00], [Current("pushf")]);

    [Fact(DisplayName = "Each instruction is a line, and the lines have all the bytes")]
    public void Lines()
    {
        ImmutableArray<DisassembledInstruction> lines = PatchDisassembly.Lines(Site, Pushf.Original.AsSpan(), NoNames);
        Assert.Equal(["pushfq", "pop     rax", "nop     [rax]"], lines.Select(line => line.Text));
        Assert.Equal([Site, Site + 1, Site + 2], lines.Select(line => line.Address));
        Assert.Equal("9c 58 0f 1f 40 00", string.Join(' ', lines.Select(line => line.Bytes)));
    }

    [Fact(DisplayName = "Bytes that are no instruction, or only the beginning of one, are shown as such")]
    public void Not_instructions()
    {
        Assert.Equal(["cli", "(cut off)"], PatchDisassembly.Lines(Site, [0xfa, 0xe9], NoNames).Select(line => line.Text));
        
        // 06 was PUSH ES; the decoder looks at what follows before it gives up.
        Assert.Equal("(bad)", PatchDisassembly.Lines(Site, [0x06, .. Enumerable.Repeat((byte)0x90, 15)], NoNames)[0].Text);
        Assert.Empty(PatchDisassembly.Lines(Site, [], NoNames));
    }

    [Fact(DisplayName = "A branch is shown with its target's name where that is known")]
    public void Names()
    {
        byte[] jump = [0xeb, 0x10];
        Assert.Equal("jmp     short f+0x12", PatchDisassembly.Lines(Site, jump, address => address == Site + 0x12 ? "f+0x12" : null)[0].Text);
        Assert.Equal("jmp     short 0xffffffff81000022", PatchDisassembly.Lines(Site, jump, NoNames)[0].Text);
    }

    [Fact(DisplayName = "The patched window is a jump whose target is left open, and the instructions behind it")]
    public void Window()
    {
        // What the jump leaves of the nop, a mov, and a trap on the second pushf.
        PatchPlan plan = Pushf with { Original = [.. Pushf.Original, 0x48, 0x89, 0xc5, 0x9c] };
        ImmutableArray<DisassembledInstruction> after = PatchDisassembly.Window(plan, NoNames);
        Assert.Equal(["e9 ?? ?? ?? ??", "cc", "48 89 c5", "f4"], after.Select(line => line.Bytes));
        Assert.Equal(["jmp     implant", "int3", "mov     rbp, rax", "hlt"], after.Select(line => line.Text));
        Assert.Empty(PatchDisassembly.Springboard(Pushf));
    }

    [Fact(DisplayName = "A window with a springboard jumps there, and the springboard to the implant")]
    public void With_springboard()
    {
        PatchPlan plan = Pushf with { Original = [0xfa, 0x90, 0x90], Springboard = new Springboard(Site - 0x10, [0, 0, 0, 0, 0]) };
        Assert.Equal(["eb ee", "90"], PatchDisassembly.Window(plan, NoNames).Select(line => line.Bytes));
        Assert.Equal([(Site - 0x10, "00 00 00 00 00")], PatchDisassembly.Padding(plan).Select(line => (line.Address, line.Bytes)));
        Assert.Equal([(Site - 0x10, "e9 ?? ?? ?? ??")], PatchDisassembly.Springboard(plan).Select(line => (line.Address, line.Bytes)));
    }

    [Fact(DisplayName = "An implant that is made again is the one that the engine would make there")]
    public void Implant()
    {
        ImmutableArray<DisassembledInstruction> shown = PatchDisassembly.Implant(Pushf, NoNames, out string reason);
        Assert.Equal("", reason);
        var templates = new TemplateSet(new TemplateHost(FsGsBase: true), new HashSet<string>());
        EncodedImplant made = ImplantEncoder.Encode(
            ImplantEncoder.Decode(Pushf.Window, Pushf.Original.AsSpan()), templates, PatchDisassembly.ImplantBase, out _)!;
        Assert.Equal(made.Code.ToArray(), shown.SelectMany(line => line.Bytes.Split(' ')).Select(value => byte.Parse(value, NumberStyles.HexNumber, CultureInfo.InvariantCulture)));
        Assert.Contains(shown, line => line.Text.Contains("vcpu.InterruptFlag", StringComparison.Ordinal));
        Assert.EndsWith("0xffffffff81000016", shown[^1].Text, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "What an implant shares with the VMM has a name, each field its own")]
    public void Shared()
    {
        // mov cr3, rdi; nop; nop
        PatchPlan load = Pushf with { Original = [0x0f, 0x22, 0xdf, 0x90, 0x90], Templates = [Current("write-root")] };
        string text = string.Join('\n', PatchDisassembly.Implant(load, NoNames, out _).Select(line => line.Text));
        Assert.Contains("vcpu.CheckedSlot1", text, StringComparison.Ordinal);
        Assert.Contains("vcpu.CheckedEntry1", text, StringComparison.Ordinal);
        Assert.DoesNotMatch(@"vcpu\.\d", text);
    }

    [Fact(DisplayName = "An implant of another template version, of a template that is gone or of bytes that do not fit is not made up")]
    public void Not_made_up()
    {
        Assert.Empty(PatchDisassembly.Implant(Pushf with { Templates = [new TemplateUse("pushf", 99)] }, NoNames, out string version));
        Assert.Contains("version 99", version, StringComparison.Ordinal);
        Assert.Empty(PatchDisassembly.Implant(Pushf with { Templates = [new TemplateUse("gone", 1)] }, NoNames, out string gone));
        Assert.Contains("no template gone", gone, StringComparison.Ordinal);
        Assert.Empty(PatchDisassembly.Implant(Pushf with { Templates = [Current("cli")] }, NoNames, out string misfit));
        Assert.Contains("do not fit", misfit, StringComparison.Ordinal);
        Assert.Empty(PatchDisassembly.Implant(Pushf with { Original = [] }, NoNames, out string empty));
        Assert.NotEmpty(empty);
    }

    private static TemplateUse Current(string name) =>
        new TemplateSet(new TemplateHost(FsGsBase: true), new HashSet<string>()).Uses.Single(use => use.Name == name);
}
