using System.Collections.Immutable;
using Dmp.Actors.Journal;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;
using FsCheck;
using FsCheck.Fluent;
using FsCheck.Xunit;

namespace Dmp.Actors.Specs.Journal;

/// <summary>Any history, sensible or not, of a few sites.</summary>
public static class Histories
{
    private static readonly Gen<long> Offset = Gen.Elements(-0x10L, 0L, 3L, 0x10L, 0x20L, long.MinValue, long.MaxValue - 0x20);

    private static readonly Gen<long> Transaction = Gen.Choose(0, 4).Select(number => (long)number);

    private static readonly Gen<string> Reason = Gen.Elements(string.Empty, "no room", "Grund: Überlappung\n", "\0");

    private static readonly Gen<ImmutableArray<byte>> Bytes = Gen.Choose(0, 255).Select(value => (byte)value).ListOf()
        .Select(values => values.ToImmutableArray());

    private static readonly Gen<TemplateUse> Template =
        from name in Gen.Elements("pushf", "cli", string.Empty)
        from version in Gen.Choose(-1, 3)
        select new TemplateUse(name, version);

    private static readonly Gen<JournaledPatch> Patch =
        from offset in Offset
        from original in Bytes
        from site in Offset
        from templates in Template.ListOf()
        select new JournaledPatch(offset, original, site, [.. templates]);

    private static readonly Gen<JournalEvent> Event = Gen.OneOf(
        from transaction in Transaction
        from patches in Patch.ListOf()
        select (JournalEvent)new JournalEvent.PatchIntended(transaction, [.. patches]),
        from transaction in Transaction
        from offsets in Offset.ListOf()
        select (JournalEvent)new JournalEvent.PatchApplied(transaction, [.. offsets]),
        from transaction in Transaction
        from offsets in Offset.ListOf()
        from reason in Reason
        select (JournalEvent)new JournalEvent.PatchAborted(transaction, [.. offsets], reason),
        Fact.Select(fact => (JournalEvent)fact));

    private static Gen<JournalEvent.Fact> Fact => Gen.OneOf(
        from offset in Offset
        from bytes in Bytes
        from reason in Reason
        from kind in Gen.Elements(Enum.GetValues<ExitKind>())
        select (JournalEvent.Fact)new JournalEvent.PatchRefused(offset, bytes, reason, kind),
        from offset in Offset
        from reason in Reason
        from which in Gen.Choose(0, 2)
        select which switch
        {
            0 => new JournalEvent.PatchReverted(offset, reason),
            1 => new JournalEvent.PatchMismatched(offset, reason),
            _ => (JournalEvent.Fact)new JournalEvent.SiteRetired(offset, reason),
        },
        from offset in Offset
        from exits in Gen.Choose(0, int.MaxValue)
        from milliseconds in Gen.Choose(0, int.MaxValue)
        select (JournalEvent.Fact)new JournalEvent.PatchObserved(offset, exits, TimeSpan.FromMilliseconds(milliseconds)),
        from offset in Offset
        from disabled in Gen.Elements(true, false)
        select disabled ? new JournalEvent.SiteDisabled(offset) : (JournalEvent.Fact)new JournalEvent.SiteEnabled(offset));

    public static Arbitrary<JournalEvent> Events() => Event.ToArbitrary();
}

[Properties(Arbitrary = [typeof(Histories)], MaxTest = 300)]
public class JournalStateSpecs
{
    private static readonly ImmutableHashSet<long> None = [];

    [Property(DisplayName = "Every beginning of every history recovers, and recovering it twice gives the same")]
    public void Every_prefix_recovers(List<JournalEvent> history)
    {
        JournalState state = JournalState.Empty;
        foreach (JournalEvent happened in history)
        {
            state = state.Apply(happened);
            Assert.NotNull(state.Sites.ToString());
        }

        Assert.Equal(state, Recover(history));
        Assert.Equal(state.GetHashCode(), Recover(history).GetHashCode());
    }

    [Property(DisplayName = "After a crash no intent stays open, and resolving again changes nothing")]
    public void Crashes_are_resolved(List<JournalEvent> history)
    {
        JournalState crashed = Recover(history);
        JournalState resolved = Resolve(crashed);
        Assert.DoesNotContain(resolved.Entries.Values, entry => entry.Status == PatchStatus.Intended);
        Assert.Same(resolved, Resolve(resolved));
        Assert.Equal(Patches(crashed), Patches(resolved));
    }

    [Property(DisplayName = "A transaction that somebody will complete is left open")]
    public void Open_transactions_are_left(List<JournalEvent> history)
    {
        JournalState state = Recover(history);
        ImmutableHashSet<long> open = [.. state.Entries.Values.Select(entry => entry.Transaction)];
        Assert.Empty(state.Unresolved("gone", open));
    }

    [Property(DisplayName = "Events and snapshots come back from their bytes as they were")]
    public void Bytes_and_back(List<JournalEvent> history)
    {
        Assert.All(history, happened => Assert.Equal(happened, Again(happened)));
        JournalState state = Recover(history);
        Assert.Equal(state, Again(state));
    }

    [Property(DisplayName = "A snapshot anywhere in a history changes nothing")]
    public void Snapshots_change_nothing(List<JournalEvent> history, NonNegativeInt at)
    {
        int cut = at.Get % (history.Count + 1);
        var snapshot = (JournalState)Again(Recover(history.Take(cut)));
        Assert.Equal(Recover(history), history.Skip(cut).Aggregate(snapshot, (state, happened) => state.Apply(happened)));
    }

    [Property(DisplayName = "Replayed is what was applied last, is switched on, and was made by the templates there are")]
    public void Replayable_patches(List<JournalEvent> history)
    {
        TemplateUse[] current = [new("pushf", 1), new("cli", 2)];
        JournalState state = Recover(history);
        ReplayPlan plan = state.Replayable(current);
        foreach (JournalEntry entry in state.Entries.Values)
        {
            bool applied = entry.Status == PatchStatus.Applied && !state.Disabled.Any(entry.Patch.Covers);
            bool fits = entry.Patch.Templates.Any() && entry.Patch.Original.Any() && entry.Patch.Templates.All(current.Contains);
            Assert.Equal(applied && fits, plan.Patches.Contains(entry.Patch));
            Assert.True(!applied || fits || plan.PlanAgain.Contains(entry.Patch.SiteOffset));
        }
    }

    [Property(DisplayName = "An event that changes nothing gives back the very same state")]
    public void Known_facts_change_nothing(List<JournalEvent> history)
    {
        JournalState state = Recover(history);
        foreach (JournalEvent happened in history.Where(happened => happened is JournalEvent.Fact))
        {
            JournalState once = state.Apply(happened);
            Assert.Same(once, once.Apply(happened));
        }
    }

    [Fact(DisplayName = "A window over the same bytes as an older one takes its place")]
    public void Overlapping_windows_over_the_same_bytes()
    {
        JournalState state = Recover(
        [
            .. Applied(1, Window(0x10, 1, 2, 3, 4, 5), Window(0x20, 1, 2, 3, 4, 5)),
            .. Applied(2, Window(0x13, 4, 5, 6, 7, 8)),
        ]);
        Assert.Equal([0x13L, 0x20L], ReplayedOffsets(state));
        Assert.Equal(PatchStatus.Reverted, state.Entries[0x10].Status);
    }

    [Fact(DisplayName = "Overlapping windows over other bytes are both replayed: the guest has them at different times")]
    public void Overlapping_windows_over_other_bytes()
    {
        JournalState state = Recover(
        [
            .. Applied(1, Window(0x10, 1, 2, 3, 4, 5), Window(0x20, 1, 2, 3, 4, 5)),
            .. Applied(2, Window(0x13, 9, 9, 6, 7, 8)),
        ]);
        Assert.Equal([0x10L, 0x13L, 0x20L], ReplayedOffsets(state));
    }

    [Fact(DisplayName = "Every stretch of a boot keeps its patch at an offset, and each is replayed")]
    public void Variants_at_one_offset()
    {
        JournalState state = Recover(
        [
            .. Applied(1, Window(0x10, 1, 2, 3)),
            .. Applied(2, Window(0x10, 4, 5, 6)),
            .. Applied(3, Window(0x10, 1, 2, 3)),
        ]);
        Assert.Equal([1, 4], state.Replayable([Journals.Pushf]).Patches.Select(patch => (int)patch.Original[0]).Order());
        Assert.Equal((byte)1, state.Entries[0x10].Patch.Original[0]);
    }

    [Fact(DisplayName = "A variant that was given up costs nothing but itself")]
    public void Aborted_variants()
    {
        JournalState state = Recover(
        [
            .. Applied(1, Window(0x10, 1, 2, 3)),
            new JournalEvent.PatchIntended(2, [Window(0x10, 4, 5, 6)]),
            new JournalEvent.PatchAborted(2, [0x10], "too late"),
        ]);
        Assert.Equal((byte)1, Assert.Single(state.Replayable([Journals.Pushf]).Patches).Original[0]);
    }

    [Theory(DisplayName = "What ends the patch at an offset ends it for whatever bytes it was made")]
    [InlineData(false)]
    [InlineData(true)]
    public void Ends_end_all_variants(bool retired)
    {
        JournalState state = Recover(
        [
            .. Applied(1, Window(0x10, 1, 2, 3)),
            .. Applied(2, Window(0x10, 4, 5, 6)),
            retired ? new JournalEvent.SiteRetired(0x10, "gone") : new JournalEvent.PatchReverted(0x10, "taken back"),
        ]);
        Assert.Empty(state.Replayable([Journals.Pushf]).Patches);
    }

    [Fact(DisplayName = "A window takes the place of one that another stretch of the boot has, and of no other at that offset")]
    public void Overlapped_variants()
    {
        JournalEvent[] older = [.. Applied(1, Window(0x10, 1, 2, 3, 4, 5)), .. Applied(2, Window(0x10, 6, 7, 8, 9, 9))];

        // Made for the bytes of the first: that one lies among the variants, the second in force beside it.
        JournalState first = Recover([.. older, .. Applied(3, Window(0x13, 4, 5, 6, 7, 8))]);
        Assert.Equal([(0x10L, 6), (0x13L, 4)], Replayed(first));

        // Made for the bytes of the second: the first is another stretch's.
        JournalState second = Recover([.. older, .. Applied(3, Window(0x13, 9, 9, 6, 7, 8))]);
        Assert.Equal([(0x10L, 1), (0x13L, 9)], Replayed(second));
    }

    [Fact(DisplayName = "What became of an older transaction says nothing about a newer one")]
    public void Late_words()
    {
        JournalState state = Recover(
        [
            new JournalEvent.PatchIntended(1, [Journals.Patch(0x10)]),
            new JournalEvent.PatchAborted(1, [0x10], "given up"),
            new JournalEvent.PatchIntended(2, [Journals.Patch(0x10)]),
            new JournalEvent.PatchApplied(1, [0x10]),
        ]);
        Assert.Equal(PatchStatus.Intended, state.Entries[0x10].Status);
    }

    [Fact(DisplayName = "A switched-off instruction keeps its whole window from being patched")]
    public void Disabled_windows()
    {
        JournalState state = Recover([new JournalEvent.SiteDisabled(0x13)]);
        Assert.True(state.IsDisabled(Journals.Patch(0x10)));
        Assert.False(state.IsDisabled(Journals.Patch(0x14)));
        Assert.Equal(SiteState.Disabled, Assert.Single(state.Sites).State);
    }

    [Fact(DisplayName = "A plan means the same wherever the kernel lies")]
    public void Plans_move_with_the_kernel()
    {
        var plan = new PatchPlan(0xffffffff81000123, 0xffffffff81000120, [1, 2, 3, 4, 5], [Journals.Pushf]);
        JournaledPatch patch = JournaledPatch.Of(plan, 0xffffffff81000000);
        Assert.Equal((0x120L, 0x123L), (patch.Offset, patch.SiteOffset));
        Assert.Equal(plan, patch.ToPlan(0xffffffff81000000));
        Assert.Equal(0xffffffff9a000120, patch.ToPlan(0xffffffff9a000000).Window);
        Assert.Equal(-0x10, JournaledPatch.Of(plan, 0xffffffff81000130).Offset);
    }

    private static JournaledPatch Window(long offset, params ImmutableArray<byte> original) =>
        new(offset, original, offset, [Journals.Pushf]);

    private static IEnumerable<JournalEvent> Applied(long transaction, params ImmutableArray<JournaledPatch> patches) =>
    [
        new JournalEvent.PatchIntended(transaction, patches),
        new JournalEvent.PatchApplied(transaction, [.. patches.Select(patch => patch.Offset)]),
    ];

    private static IEnumerable<long> ReplayedOffsets(JournalState state) => Replayed(state).Select(patch => patch.Offset);

    private static IEnumerable<(long Offset, int First)> Replayed(JournalState state) =>
        state.Replayable([Journals.Pushf]).Patches.Select(patch => (patch.Offset, (int)patch.Original[0]));

    private static JournalState Recover(IEnumerable<JournalEvent> history) =>
        history.Aggregate(JournalState.Empty, (state, happened) => state.Apply(happened));

    private static JournalState Resolve(JournalState state) =>
        state.Unresolved("the VMM ended", None).Aggregate(state, (before, aborted) => before.Apply(aborted));

    private static object Again(object value) => JournalCodec.Decode(JournalCodec.Encode(value), JournalCodec.Manifest(value));

    private static IEnumerable<JournaledPatch> Patches(JournalState state) => state.Entries.Values.Select(entry => entry.Patch);
}
