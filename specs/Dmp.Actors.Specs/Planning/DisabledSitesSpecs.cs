using System.Collections.Immutable;
using Akka.Actor;
using Akka.TestKit;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Exits;
using Dmp.Actors.Journal;
using Dmp.Actors.Planning;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Specs.Planning;

/// <summary>What the user switched off in the journal.</summary>
public sealed class DisabledSitesSpecs : TestKit
{
    private const ulong Base = 0xffffffff81000000;
    private const ulong Off = Base + 0x10;
    private const ulong On = Base + 0x20;

    private static readonly TemplateUse Pushf = new("pushf", 1);

    private readonly AnyPlanEngine engine = new();
    private readonly PatchBook book = new(patchLimit: 100);
    private readonly TestProbe journal;
    private readonly IActorRef planner;

    public DisabledSitesSpecs()
        : base(Settings.InVirtualTime)
    {
        journal = CreateTestProbe();
        var peers = new PlannerPeers(journal, CreateTestProbe(), Replay: true, RecordUnused: true) { Symbol = address => $"f+0x{address - Base:x}" };
        planner = ActorOf(PatchPlanner.Props(engine, book, peers, Settings.Shipped));
    }

    [Fact(DisplayName = "A site that is switched off is neither replayed nor planned, and is reported as disabled")]
    public void Switched_off()
    {
        planner.Tell(new JournalProtocol.BecameAvailable(Patched(new JournalEvent.SiteDisabled(0x10))));
        planner.Tell(Hot());
        JournalProtocol.Intend intend = journal.FishForMessage<JournalProtocol.Intend>(_ => true);
        Assert.Equal([0x20L], intend.Patches.Select(patch => patch.SiteOffset));
        Assert.Equal([On], engine.Replayed.Select(plan => plan.Site));
        Assert.Equal(PatchedSiteState.Disabled, book.Summarize().Find(Off)?.State);
    }

    [Fact(DisplayName = "A site that is switched on again is replayed and planned")]
    public void Switched_on()
    {
        planner.Tell(new JournalProtocol.BecameAvailable(Patched(new JournalEvent.SiteDisabled(0x10), new JournalEvent.SiteEnabled(0x10))));
        planner.Tell(Hot());
        JournalProtocol.Intend intend = journal.FishForMessage<JournalProtocol.Intend>(_ => true);
        Assert.Equal([0x10L, 0x20L], intend.Patches.Select(patch => patch.SiteOffset));
        Assert.Equal([Off, On], engine.Replayed.Select(plan => plan.Site));
        Assert.Null(book.Summarize().Find(Off));
    }

    [Fact(DisplayName = "A journal that comes after the guest's start still keeps its switched-off sites from being planned")]
    public void Journal_comes_late()
    {
        planner.Tell(new JournalProtocol.BecameUnavailable("busy"));
        planner.Tell(new JournalProtocol.BecameAvailable(Patched(new JournalEvent.SiteDisabled(0x10))));
        planner.Tell(Hot());
        JournalProtocol.Intend intend = journal.FishForMessage<JournalProtocol.Intend>(_ => true);
        Assert.Equal([0x20L], intend.Patches.Select(patch => patch.SiteOffset));
    }

    [Fact(DisplayName = "A hot site whose window holds a switched-off one is not patched, and is reported as disabled")]
    public void Beside_a_switched_off_site()
    {
        planner.Tell(new JournalProtocol.BecameAvailable(JournalState.Empty.Apply(new JournalEvent.SiteDisabled(0x12))));
        planner.Tell(Hot());
        JournalProtocol.Intend intend = journal.FishForMessage<JournalProtocol.Intend>(_ => true);
        Assert.Equal([0x20L], intend.Patches.Select(patch => patch.SiteOffset));
        Assert.Equal(PatchedSiteState.Disabled, book.Summarize().Find(Off)?.State);
        Assert.Equal(PatchedSiteState.Disabled, book.Summarize().Find(Base + 0x12)?.State);
    }

    [Fact(DisplayName = "An intent says where the kernel lies and what its sites are called")]
    public void Names()
    {
        planner.Tell(new JournalProtocol.BecameAvailable(JournalState.Empty));
        planner.Tell(Hot());
        JournalProtocol.Intend intend = journal.FishForMessage<JournalProtocol.Intend>(_ => true);
        Assert.Equal(Base, intend.KernelBase);
        Assert.Equal(["f+0x10", "f+0x20"], intend.Patches.Select(patch => patch.Symbol));
    }

    private static PlanningProtocol.HotSitesDetected Hot() => new(
        TimeSpan.FromSeconds(1), [new HotSite(Off, ExitKind.Silent, 100, 100), new HotSite(On, ExitKind.Silent, 100, 100)]);

    private static JournalState Patched(params JournalEvent[] later) => new JournalEvent[]
    {
        new JournalEvent.PatchIntended(1, [Patch(0x10), Patch(0x20)]),
        new JournalEvent.PatchApplied(1, [0x10, 0x20]),
    }.Concat(later).Aggregate(JournalState.Empty, (state, happened) => state.Apply(happened));

    private static JournaledPatch Patch(long offset) => new(offset, [0x9c, 0x58, 0x0f, 0x1f, 0x00], offset, [Pushf]);

    /// <summary>Plans and prepares whatever it is asked to.</summary>
    private sealed class AnyPlanEngine : IPatchEngine
    {
        public ImmutableArray<PatchPlan> Replayed { get; private set; } = [];

        public ulong KernelBase => Base;

        public ImmutableArray<TemplateUse> Templates => [Pushf];

        public PlanResult Plan(ulong site, ExitKind kind) => new PlanResult.Planned(Patch((long)(site - Base)).ToPlan(Base));

        public bool HasBytes(ulong address, ReadOnlySpan<byte> bytes) => true;

        public PreparedPatch? Prepare(PatchPlan plan, out PreparationFailure? failure)
        {
            failure = null;
            return new PreparedPatch(plan, Implant: 0, plan.Original);
        }

        public bool TryApply(PreparedPatch patch, out string reason) => throw new NotSupportedException();

        public bool Revert(ulong window) => throw new NotSupportedException();

        public void Replay(IReadOnlyList<PatchPlan> plans) => Replayed = [.. plans];

        public ImmutableArray<PatchPlan> Unused() => [];

        public void TakeNotices(List<PatchNotice> notices) => notices.Clear();

        public void Discard(PreparedPatch patch)
        {
        }

        public ImmutableArray<PatchPlan> InForce() => [];

        public ImmutableArray<string> Verify() => [];

        public PatchDescription? Describe(PatchPlan plan) => null;
    }
}
