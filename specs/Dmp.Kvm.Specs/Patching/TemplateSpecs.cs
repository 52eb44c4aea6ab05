using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;
using Dmp.Kvm.Specs.Machine;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>Each template against the emulated original, on the processor.</summary>
[Collection(KvmMachineCollection.Name)]
public class TemplateSpecs
{
    private const int States = 2000;

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
        TemplateCase known = TemplateCase.Of(template);
        TemplatePieces pieces = new(known);
        using PatchRig trapped = pieces.Load(patching: false);
        using PatchRig patched = pieces.Load(patching: true);
        foreach (ulong site in pieces.Sites)
        {
            _ = patched.Patch(site);
        }

        long before = patched.Emulations;
        PatchRig.CheckSeeds(States, random =>
        {
            GuestState state = GuestState.Any(random, pieces.Sites[random.Next(pieces.Sites.Length)]);
            known.Arrange(state, random);
            GuestResult original = trapped.Run(state);
            string difference = original.Difference(patched.Run(state), known.Dead(state, original));
            Assert.True(difference.Length == 0, difference);
        });

        // An original and its mark are two emulations; what ends at a handler or mark alone was done by the implant.
        Assert.InRange(patched.Emulations - before, States, States * 9 / 5);
    }
}
