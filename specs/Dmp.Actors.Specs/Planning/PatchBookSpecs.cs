using System.Collections.Immutable;
using Dmp.Actors.Exits;
using Dmp.Actors.Planning;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;
using FsCheck;
using FsCheck.Fluent;
using FsCheck.Xunit;

namespace Dmp.Actors.Specs.Planning;

public class PatchBookSpecs
{
    [Property(DisplayName = "A refused site is not asked about again until its bytes change, however hot it is")]
    public void Refusals(ulong rip, NonEmptyArray<byte> bytes, bool changed)
    {
        var book = new PatchBook(10);
        book.Refuse(rip, [.. bytes.Get], "no room");
        Assert.Equal(changed, book.WantsPlan(Hot(rip), (address, old) => Same(!changed, rip, bytes.Get, address, old), 0, out string reason));
        Assert.Equal(changed ? "" : "no room", reason);

        // Once changed, the old refusal is forgotten.
        Assert.Equal(changed, book.WantsPlan(Hot(rip), (_, _) => true, 0, out _));
        Assert.Equal(changed ? 0 : 1, book.Summarize().Refused);
    }

    [Fact(DisplayName = "A site whose bytes could not be read is asked about again: they may be there by now")]
    public void Unreadable_sites()
    {
        var book = new PatchBook(10);
        book.Refuse(0x100, [], "it cannot be read");
        Assert.True(book.WantsPlan(Hot(0x100), (_, _) => true, 0, out _));
    }

    [Property(DisplayName = "Patches in force and patches under way never come to more than the machine may have")]
    public void Budget(byte limit, byte standing, byte planned)
    {
        var book = new PatchBook(limit);
        for (ulong site = 0; site < standing; site++)
        {
            book.Apply(FakePatchEngine.PlanOf(site * 0x10));
        }

        bool wanted = book.WantsPlan(Hot(0x10_0000), (_, _) => true, planned, out string reason);
        Assert.Equal(standing + planned < limit, wanted);
        Assert.Equal(wanted ? "" : $"the machine has {limit} patches", reason);
        Assert.Equal(wanted ? 0 : 1, book.Summarize().Sites.Count);
    }

    [Theory(DisplayName = "What happened to a patch before it was taken back, and is heard of later, does not put it back")]
    [InlineData(PatchNoticeKind.Dirtied)]
    [InlineData(PatchNoticeKind.Reinstated)]
    [InlineData(PatchNoticeKind.Overwritten)]
    public void Late_notices(PatchNoticeKind kind)
    {
        PatchPlan plan = FakePatchEngine.PlanOf(0x80);
        var book = new PatchBook(10);
        book.Apply(plan);
        book.Withdraw(plan, "off");
        book.Note(new PatchNotice(plan, kind, ""));
        Assert.Equal([plan], (IEnumerable<PatchPlan>)book.Withdrawn);
        Assert.Empty(book.Standing);
        Assert.Equal(0, book.Summarize().InForce);

        // Applied again, it is heard again.
        book.Apply(plan);
        book.Note(new PatchNotice(plan, PatchNoticeKind.Overwritten, ""));
        Assert.Empty(book.Standing);
    }

    [Property(DisplayName = "Exactly the sites in the window of a patch that is in force, dirty or switched off are left alone")]
    public void Covered_sites(byte offset, PatchNoticeKind notice, bool withdrawn)
    {
        PatchPlan plan = FakePatchEngine.PlanOf(0x80);
        var book = new PatchBook(10);
        book.Apply(plan);
        book.Note(new PatchNotice(plan, notice, ""));
        if (withdrawn)
        {
            book.Withdraw(plan, "off");
        }

        bool gone = notice == PatchNoticeKind.Overwritten && !withdrawn;
        bool inside = offset is >= 0x80 and < 0x85;
        Assert.Equal(gone || !inside, book.WantsPlan(Hot(offset), (_, _) => true, 0, out _));
    }

    [Property(DisplayName = "Whatever happens to patches, the summary adds up, and no patch is both in force and taken back")]
    public void Any_history(List<(byte Site, byte What)> history)
    {
        var book = new PatchBook(1000);
        int applied = 0, replayed = 0, reverted = 0, aborted = 0;
        foreach ((byte site, byte what) in history)
        {
            PatchPlan plan = FakePatchEngine.PlanOf((ulong)(site % 8) * 0x10);
            switch (what % 5)
            {
                case 0:
                    book.Apply(plan);
                    applied++;
                    break;
                case 1:
                    book.Abort(plan, "too late", wasIntended: true);
                    aborted++;
                    break;
                case 2:
                    book.Withdraw(plan, "off");
                    reverted++;
                    break;
                case 3:
                    book.Refuse(plan.Site, [1], "no room");
                    break;
                default:
                    var kind = (PatchNoticeKind)(what / 5 % Enum.GetValues<PatchNoticeKind>().Length);
                    book.Note(new PatchNotice(plan, kind, "detail"));
                    replayed += kind == PatchNoticeKind.Replayed ? 1 : 0;
                    break;
            }

            PatchSummary summary = book.Summarize();
            Assert.Equal((applied, replayed, reverted, aborted), (summary.Applied, summary.Replayed, summary.Reverted, summary.Aborted));
            Assert.Equal(summary.InForce, summary.Windows.Count(window => window.Site.State == PatchedSiteState.Applied));
            Assert.InRange(summary.InForce, 0, book.Standing.Length);
            Assert.Empty(book.Standing.Intersect(book.Withdrawn));
            Assert.Equal(summary.Windows.Select(window => window.Start).Distinct().Count(), summary.Windows.Length);
        }
    }

    [Fact(DisplayName = "A switched-off instruction keeps every window over it from being patched")]
    public void Disabled_sites()
    {
        var book = new PatchBook(10);
        book.Disable([0x104]);
        Assert.True(book.IsDisabled(FakePatchEngine.PlanOf(0x100)));
        Assert.False(book.IsDisabled(FakePatchEngine.PlanOf(0x105)));
    }

    [Fact(DisplayName = "A window that is patched for other bytes is another patch, and both are known")]
    public void Variants()
    {
        PatchPlan one = FakePatchEngine.PlanOf(0x100);
        PatchPlan other = one with { Original = [1, 2, 3, 4, 5] };
        var book = new PatchBook(10);
        book.Apply(one);
        book.Note(new PatchNotice(one, PatchNoticeKind.Overwritten, "other bytes"));
        book.Apply(other);
        Assert.Equal(other, Assert.Single(book.Standing));
        Assert.Equal(PatchedSiteState.Applied, book.Summarize().Find(0x102)?.State);

        book.Note(new PatchNotice(other, PatchNoticeKind.Overwritten, "other bytes"));
        book.Note(new PatchNotice(one, PatchNoticeKind.Reinstated, ""));
        Assert.Equal(one, Assert.Single(book.Standing));
    }

    private static bool Same(bool same, ulong rip, byte[] bytes, ulong address, ImmutableArray<byte> old)
    {
        Assert.Equal(rip, address);
        Assert.Equal(bytes, old);
        return same;
    }

    private static HotSite Hot(ulong rip) => new(rip, ExitKind.Privileged, 100, 100);
}
