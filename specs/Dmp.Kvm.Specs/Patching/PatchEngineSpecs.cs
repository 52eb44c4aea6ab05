using System.Collections.Immutable;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Patching;
using FsCheck.Xunit;
using Iced.Intel;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>The engine's part of a patch's life, in memory that nothing runs in.</summary>
public sealed class PatchEngineSpecs : IDisposable
{
    private const ulong Code = EngineRig.Code;
    private const ulong Site = Code + 0x100;
    private const byte Hlt = 0xF4;

    // cli; mov rax, rcx; inc ecx; pushfq; ret
    private static readonly byte[] Sample = [0xFA, 0x48, 0x89, 0xC8, 0xFF, 0xC1, 0x9C, 0xC3];

    private readonly EngineRig rig = new();

    public PatchEngineSpecs() => rig.Write(Site, Sample);

    public void Dispose() => rig.Dispose();

    [Fact(DisplayName = "Planning and preparing leave the guest's memory as it is")]
    public void Without_effect()
    {
        rig.Scan();
        byte[] before = Page();
        _ = rig.Prepare(rig.Plan(Site));
        Assert.Equal(before, Page());
        Assert.Empty(rig.Engine.Verify());
        Assert.Empty(rig.Notices());
    }

    [Fact(DisplayName = "A patch replaces its window and nothing else; taken back, the page is what the scan made of it")]
    public void Apply_and_revert()
    {
        rig.Scan();
        byte[] before = Page();
        PreparedPatch patch = rig.Apply(rig.Plan(Site));
        byte[] expected = [.. before];
        patch.Replacement.CopyTo(expected, (int)(patch.Plan.Window - Code));
        Assert.Equal(expected, Page());
        Assert.Equal(patch.Implant, rig.Target(patch.Plan.Window));
        Assert.True(rig.Engine.HasBytes(patch.Plan.Window, patch.Plan.Original.AsSpan()));
        Assert.Empty(rig.Engine.Verify());

        Assert.True(rig.Engine.Revert(patch.Plan.Window));
        Assert.Equal(before, Page());
        Assert.False(rig.Engine.Revert(patch.Plan.Window));
        Assert.Equal(before, Page());
        rig.Release();
        rig.Scan();
        Assert.Equal(before, Page());
        Assert.Empty(rig.Notices());
    }

    [Fact(DisplayName = "Applying a patch twice is applying it once, and one that was taken back must be prepared again")]
    public void Twice()
    {
        rig.Scan();
        PreparedPatch patch = rig.Apply(rig.Plan(Site));
        byte[] patched = Page();
        Assert.True(rig.Engine.TryApply(patch, out _));
        Assert.Same(patch, rig.Prepare(rig.Plan(Site)));
        Assert.Equal(patched, Page());
        Assert.True(rig.Engine.Revert(patch.Plan.Window));
        Assert.False(rig.Engine.TryApply(patch, out string reason));
        Assert.NotEmpty(reason);
    }

    [Fact(DisplayName = "However often a patch is taken back and applied again, it has one implant")]
    public void Again_and_again()
    {
        rig.Scan();
        PatchPlan plan = rig.Plan(Site);
        PreparedPatch first = rig.Apply(plan);
        byte[] patched = Page();
        for (int times = 0; times < 3; times++)
        {
            Assert.True(rig.Engine.Revert(plan.Window));
            Assert.False(rig.Engine.Revert(plan.Window));
            Assert.Equal(first.Implant, rig.Apply(plan).Implant);
            Assert.Equal(patched, Page());
        }

        Assert.True(rig.Engine.Revert(plan.Window));
        rig.Release();
        rig.Scan();
        Assert.Empty(rig.Engine.InForce());
        Assert.Empty(rig.Notices());
    }

    [Fact(DisplayName = "Before the guest writes to a page it has its own bytes back, and the inside of its windows is its own")]
    public void Dirty()
    {
        byte[] own = Page();
        rig.Scan();
        PreparedPatch patch = rig.Apply(rig.Plan(Site));
        Assert.NotEqual(Site + 1, rig.Engine.Map.RealAddress(Site + 1));
        rig.Release();
        Assert.Equal(own, Page());
        Assert.Equal(Site + 1, rig.Engine.Map.RealAddress(Site + 1));
        Assert.Equal([(patch.Plan.Window, PatchNoticeKind.Dirtied)], rig.Notices());
        Assert.Empty(rig.Engine.Verify());
        Assert.Empty(rig.Notices());
    }

    [Property(
        DisplayName = "A page that runs again has exactly those patches whose windows are unchanged, and gives back what the guest wrote",
        MaxTest = 100)]
    public void Run_again(int seed)
    {
        Random random = new(seed);
        using EngineRig fresh = new();
        const int Functions = 8;
        const int Distance = 0x40;
        for (int index = 0; index < Functions; index++)
        {
            fresh.Write(Code + (ulong)(index * Distance), Sample);
        }

        fresh.Scan();
        PreparedPatch[] patches =
            [.. Enumerable.Range(0, Functions).Select(index => fresh.Apply(fresh.Plan(Code + (ulong)(index * Distance))))];
        fresh.Release();
        _ = fresh.Notices();
        for (int change = random.Next(6); change > 0; change--)
        {
            fresh.Bytes(Code + (ulong)random.Next(Functions * Distance), 1)[0] = 0x91;
        }

        byte[] written = fresh.Bytes(Code, Paging.PageSize).ToArray();
        fresh.Scan();
        HashSet<(ulong, PatchNoticeKind)> expected = [];
        foreach (PreparedPatch patch in patches)
        {
            int offset = (int)(patch.Plan.Window - Code);
            bool same = written.AsSpan(offset, patch.Plan.Original.Length).SequenceEqual(patch.Plan.Original.AsSpan());
            _ = expected.Add((patch.Plan.Window, same ? PatchNoticeKind.Reinstated : PatchNoticeKind.Overwritten));
            Assert.Equal(
                same,
                fresh.Bytes(patch.Plan.Window, patch.Replacement.Length).SequenceEqual(patch.Replacement.AsSpan()));
            Assert.Equal(same, fresh.Engine.Map.RealAddress(patch.Plan.Window + 1) != patch.Plan.Window + 1);
        }

        Assert.Equal(expected, fresh.Notices().ToHashSet());
        Assert.Empty(fresh.Engine.Verify());
        byte[] read = new byte[Paging.PageSize];
        _ = fresh.Scanned.ReadOriginal(EngineRig.Frame(Code), 0, read);
        Assert.Equal(written, read);
        fresh.Release();
        Assert.Equal(written, fresh.Bytes(Code, Paging.PageSize).ToArray());
    }

    [Fact(DisplayName = "A patch whose bytes the guest changed and put back is back, and the change is reported once")]
    public void There_and_back()
    {
        rig.Scan();
        PreparedPatch patch = rig.Apply(rig.Plan(Site));
        for (int round = 0; round < 2; round++)
        {
            rig.Release();
            rig.Write(Site, [0xCC]);
            rig.Scan();
        }

        rig.Release();
        rig.Write(Site, [0xFA]);
        rig.Scan();
        ulong window = patch.Plan.Window;
        Assert.Equal(
            [
                (window, PatchNoticeKind.Dirtied),
                (window, PatchNoticeKind.Overwritten),
                (window, PatchNoticeKind.Reinstated),
            ],
            rig.Notices());
        Assert.Equal(patch.Implant, rig.Target(window));
    }

    [Theory(DisplayName = "Where the guest changed the window meanwhile, nothing changes, and the patch is forgotten")]
    [InlineData(0)]
    [InlineData(3)]
    [InlineData(6)]
    public void Changed_before(int changed)
    {
        rig.Scan();
        PreparedPatch patch = rig.Prepare(rig.Plan(Site));
        rig.Release();
        rig.Write(Site + (ulong)changed, [0x91]);
        rig.Scan();
        byte[] before = Page();
        Assert.False(rig.Engine.TryApply(patch, out string reason));
        Assert.Equal("the bytes changed", reason);
        Assert.Equal(before, Page());
        Assert.False(rig.Engine.TryApply(patch, out _));
        rig.Release();
        rig.Write(Site, Sample);
        rig.Scan();
        Assert.Equal(Site + 1, rig.Engine.Map.RealAddress(Site + 1));
        Assert.Empty(rig.Notices());
    }

    [Fact(DisplayName = "A patch of a page that does not run at the moment is not applied")]
    public void Not_scanned()
    {
        byte[] own = Page();
        PreparedPatch patch = rig.Prepare(rig.Plan(Site));
        Assert.False(rig.Engine.TryApply(patch, out string reason));
        Assert.Equal("the guest is changing this page", reason);
        Assert.Equal(own, Page());
    }

    [Fact(DisplayName = "Of several patches those that can be applied are, whatever becomes of the others")]
    public void Partly()
    {
        ulong second = Code + Paging.PageSize + 0x100;
        ulong third = Site + 0x100;
        rig.Write(second, Sample);
        rig.Write(third, Sample);
        rig.Scan();
        PreparedPatch[] patches = [.. ((ulong[])[Site, second, third]).Select(site => rig.Prepare(rig.Plan(site)))];
        Assert.Equal([true, false, true], patches.Select(patch => rig.Engine.TryApply(patch, out _)));
        Assert.Equal(patches[0].Implant, rig.Target(Site));
        Assert.Equal(patches[2].Implant, rig.Target(third));
        Assert.Equal(Sample, rig.Bytes(second, Sample.Length).ToArray());
        Assert.Empty(rig.Engine.Verify());
    }

    [Fact(DisplayName = "A patch of an earlier run is applied by the first scan of its page, if the bytes are the same")]
    public void Replay()
    {
        ulong other = Site + 0x100;
        rig.Write(other, Sample);
        PatchPlan plan = rig.Plan(Site);
        PatchPlan missing = rig.Plan(other);
        rig.Write(other, [0x91]);
        using EngineRig second = new();
        second.Write(Code, Page());
        second.Engine.Replay([plan, missing, plan]);
        Assert.Equal([plan, missing], second.Engine.Unused().ToArray());
        Assert.Equal(Page(), second.Bytes(Code, Paging.PageSize).ToArray());
        second.Scan();
        Assert.Equal([(plan.Window, PatchNoticeKind.Replayed)], second.Notices());
        Assert.Equal([missing], second.Engine.Unused().ToArray());
        Assert.True(MachineLayout.ArenaBase <= second.Target(Site));
        Assert.Equal(0x91, second.Bytes(other, 1)[0]);

        second.Release();
        second.Write(other, Sample);
        second.Scan();
        Assert.Empty(second.Engine.Unused());
        Assert.Empty(second.Engine.Verify());
        Assert.Equal(
            [
                (plan.Window, PatchNoticeKind.Dirtied),
                (plan.Window, PatchNoticeKind.Reinstated),
                (missing.Window, PatchNoticeKind.Replayed),
            ],
            second.Notices().OrderBy(notice => notice.Window).ThenBy(notice => notice.What == PatchNoticeKind.Dirtied ? 0 : 1));
    }

    [Theory(DisplayName = "A plan of an earlier run that makes no sense is a mismatch")]
    [InlineData("")]
    [InlineData("06")]
    [InlineData("06 90 90 90 90")]
    [InlineData("FA")]
    [InlineData("FA 90 90 90")]
    public void Replay_nonsense(string original)
    {
        PatchPlan plan = new(
            Site, Site, [.. Convert.FromHexString(original.Replace(" ", "", StringComparison.Ordinal))], [new TemplateUse("cli", 1)]);
        rig.Engine.Replay([plan]);
        Assert.Equal([(Site, PatchNoticeKind.Mismatched)], rig.Notices());
        Assert.Empty(rig.Engine.Unused());
    }

    [Fact(DisplayName = "A patch that overlaps another is not prepared")]
    public void Overlap()
    {
        rig.Scan();
        PatchPlan first = rig.PlanOf(Site, 6);
        _ = rig.Apply(first);
        Assert.Null(rig.Engine.Prepare(rig.PlanOf(Site + 4, 8), out PreparationFailure? failure));
        Assert.Contains($"{Site:x}", failure!.Reason, StringComparison.Ordinal);
        Assert.False(failure.IsFinal);
        _ = rig.Apply(rig.PlanOf(Site + 6, 8));
    }

    [Fact(DisplayName = "Where no jump can lead to an implant, there is no use in asking again")]
    public void No_room()
    {
        // No displacement from a module's window to the arena has a highest byte that faults.
        const ulong Module = 0xFFFF_FFFF_C000_0000;
        PatchPlan plan = new(Module, Module, [0xFA, 0x90, 0x90, 0x90, 0x90], [new TemplateUse("cli", 1)]);
        Assert.Null(rig.Engine.Prepare(plan, out PreparationFailure? failure));
        Assert.Equal(new PreparationFailure("no room in the arena where the jump may lead", IsFinal: true), failure);
    }

    [Fact(DisplayName = "A prepared patch that is given up is in no other's way, and comes back with the implant it had")]
    public void Discarded()
    {
        rig.Scan();
        PatchPlan plan = rig.PlanOf(Site, 6);
        PreparedPatch given = rig.Prepare(plan);
        PatchPlan overlapping = rig.PlanOf(Site + 4, 8);
        Assert.Null(rig.Engine.Prepare(overlapping, out _));
        rig.Engine.Discard(given);
        _ = rig.Apply(overlapping);
        Assert.True(rig.Engine.Revert(overlapping.Window));

        PreparedPatch again = rig.Prepare(plan);
        Assert.Equal(given.Implant, again.Implant);
        Assert.True(rig.Engine.TryApply(again, out _));
        rig.Engine.Discard(again);
        Assert.Equal([plan], rig.Engine.InForce().AsEnumerable());
        Assert.Empty(rig.Engine.Verify());
    }

    [Theory(DisplayName = "No two patches share a byte: neither windows nor springboards, however they are combined")]
    [InlineData(true)]
    [InlineData(false)]
    public void Springboard_overlap(bool springboardFirst)
    {
        // cli; ret; and padding that serves as the rest of a window, or as a springboard.
        rig.Write(Site, [0xFA, 0xC3, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC]);
        rig.Write(Site + 0x20, [0xFA, 0xC3]);
        rig.Scan();
        PatchPlan window = rig.PlanOf(Site, 5);
        PatchPlan jumping = rig.PlanOf(Site + 0x20, 2, rig.SpringboardAt(Site + 4));
        _ = rig.Apply(springboardFirst ? jumping : window);
        byte[] before = Page();
        Assert.Null(rig.Engine.Prepare(springboardFirst ? window : jumping, out PreparationFailure? failure));
        Assert.StartsWith("it overlaps", failure!.Reason, StringComparison.Ordinal);
        Assert.Equal(before, Page());
    }

    [Fact(DisplayName = "Padding that is a window's or a springboard's is reserved while the patch is in force")]
    public void Reserved()
    {
        rig.Write(Site, [0xFA, 0xC3, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC]);
        rig.Scan();
        _ = rig.Apply(rig.PlanOf(Site, 5));
        PatchPlan jumping = rig.PlanOf(Site + 0x20, 2, rig.SpringboardAt(Site + 0x40));
        rig.Apply(jumping);
        Assert.True(rig.Text.IsReserved(Site + 4));
        Assert.False(rig.Text.IsReserved(Site + 5));
        Assert.True(rig.Text.IsReserved(Site + 0x3C));
        Assert.True(rig.Text.IsReserved(Site + 0x44));
        Assert.False(rig.Text.IsReserved(Site + 0x45));
        Assert.True(rig.Engine.Revert(jumping.Window));
        Assert.False(rig.Text.IsReserved(Site + 0x40));
    }

    [Fact(DisplayName = "A patch that came back while another was prepared in its place keeps the place")]
    public void Came_back()
    {
        rig.Scan();
        PreparedPatch first = rig.Apply(rig.PlanOf(Site, 6));
        rig.Release();
        PreparedPatch other = rig.Prepare(rig.PlanOf(Site + 4, 8));
        rig.Scan();
        byte[] before = Page();
        Assert.Equal(first.Implant, rig.Target(Site));
        Assert.False(rig.Engine.TryApply(other, out string reason));
        Assert.StartsWith("it overlaps", reason, StringComparison.Ordinal);
        Assert.Equal(before, Page());
        Assert.Empty(rig.Engine.Verify());
    }

    [Fact(DisplayName = "A springboard comes and goes with its window")]
    public void Springboards()
    {
        rig.Scan();
        byte[] before = Page();
        PatchPlan plan = rig.PlanOf(Site, 4, rig.SpringboardAt(Site + 0x41));
        PreparedPatch patch = rig.Apply(plan);
        Assert.Equal([0xEB, 0x3F, 0xCC, 0xCC], rig.Bytes(Site, 4).ToArray());
        Assert.Equal(patch.Implant, rig.Target(Site + 0x41));
        rig.Bytes(Site + 0x42, 1)[0] ^= 1;
        Assert.Single(rig.Engine.Verify());
        rig.Bytes(Site + 0x42, 1)[0] ^= 1;
        Assert.Empty(rig.Engine.Verify());
        Assert.True(rig.Engine.Revert(Site));
        Assert.Equal(before, Page());
    }

    [Theory(DisplayName = "Where the guest changed the window or the padding of a springboard, neither changes")]
    [InlineData(0UL)]
    [InlineData(0x45UL)]
    public void Springboard_changed(ulong changed)
    {
        rig.Scan();
        PreparedPatch patch = rig.Prepare(rig.PlanOf(Site, 4, rig.SpringboardAt(Site + 0x41)));
        rig.Release();
        rig.Write(Site + changed, [0x91]);
        rig.Scan();
        byte[] before = Page();
        Assert.False(rig.Engine.TryApply(patch, out _));
        Assert.Equal(before, Page());
    }

    [Fact(DisplayName = "Verifying names each patch whose bytes are not there")]
    public void Verify()
    {
        rig.Scan();
        PreparedPatch patch = rig.Apply(rig.Plan(Site));
        rig.Bytes(Site + 2, 1)[0] ^= 0xFF;
        string line = Assert.Single(rig.Engine.Verify());
        Assert.Contains($"0x{patch.Plan.Window:x}", line, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "A disabled template takes part in no plan")]
    public void Disabled()
    {
        using EngineRig without = new("cli");
        without.Write(Site, Sample);
        PlanResult.Refused refused = Assert.IsType<PlanResult.Refused>(without.Engine.Plan(Site, ExitKind.Privileged));
        Assert.Equal("no template for cli", refused.Reason);
        Assert.Equal([0xFA], refused.Bytes.ToArray());
        Assert.DoesNotContain("cli", without.Plan(Site + 6).Templates.Select(use => use.Name));
        Assert.DoesNotContain("cli", without.Engine.Templates.Select(use => use.Name));
    }

    [Fact(DisplayName = "The implant in the arena is the window's instructions and the way back")]
    public void Implant()
    {
        rig.Scan();
        PreparedPatch patch = rig.Apply(rig.PlanOf(Site, 6));
        PatchDescription? description = rig.Engine.Describe(patch.Plan);
        Assert.NotNull(description);
        ImmutableArray<Instruction> implant = rig.Implant(patch.Implant, 0x20);
        Assert.Equal(
            [Mnemonic.Mov, Mnemonic.Mov, Mnemonic.Inc, Mnemonic.Jmp], implant[..4].Select(instruction => instruction.Mnemonic));
        Assert.Equal(Site + 6, implant[3].NearBranchTarget);
        Assert.Equal(3, description.Before.Length);
        Assert.Equal(4, description.After.Length);
    }

    private byte[] Page() => rig.Bytes(Code, Paging.PageSize).ToArray();
}
