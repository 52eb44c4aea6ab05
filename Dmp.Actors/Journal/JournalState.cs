using System.Collections.Immutable;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Journal;

/// <summary>The last word about a patch.</summary>
public enum PatchStatus
{
    /// <summary>The intent is stored; whether it was applied is not known yet.</summary>
    Intended,

    /// <summary>It is, or was when its VMM ended, in the guest's code.</summary>
    Applied,

    /// <summary>It was not applied.</summary>
    Aborted,

    /// <summary>It was applied and taken back.</summary>
    Reverted,

    /// <summary>The guest overwrote it.</summary>
    Retired,

    /// <summary>It did not fit the guest's bytes.</summary>
    Mismatched,
}

/// <summary>State of a site, as lists show it.</summary>
public enum SiteState
{
    /// <summary>A patch is about to be applied.</summary>
    Intended,

    /// <summary>A patch is in force.</summary>
    Applied,

    /// <summary>It cannot be patched.</summary>
    Refused,

    /// <summary>The last attempt to patch it was given up.</summary>
    Aborted,

    /// <summary>Its patch was taken back.</summary>
    Reverted,

    /// <summary>The user switched it off.</summary>
    Disabled,

    /// <summary>The guest overwrote it.</summary>
    Retired,

    /// <summary>Its patch did not fit the guest's bytes.</summary>
    Mismatched,
}

/// <summary>What the journal knows of a patch.</summary>
/// <param name="Patch">The patch.</param>
/// <param name="Status">The last word about it.</param>
/// <param name="Reason">Why; empty when intended or applied.</param>
/// <param name="Transaction">The transaction that intended it last.</param>
/// <param name="ExitsBefore">Exits counted at the site before it was patched; 0 when not observed.</param>
/// <param name="PeriodBefore">Time in which they were counted; zero when not observed.</param>
public sealed record JournalEntry(
    JournaledPatch Patch, PatchStatus Status, string Reason, long Transaction, long ExitsBefore, TimeSpan PeriodBefore)
{
    /// <summary>Exits per second before the patch, and with that what it saves each second; null when not observed.</summary>
    public double? ExitsPerSecondBefore => PeriodBefore > TimeSpan.Zero ? ExitsBefore / PeriodBefore.TotalSeconds : null;
}

/// <summary>A site, as lists show it.</summary>
/// <param name="SiteOffset">Offset of the site from the kernel's base, in bytes.</param>
/// <param name="State">Its state.</param>
/// <param name="Reason">Why; may be empty.</param>
/// <param name="Entry">Its patch, if there ever was one.</param>
/// <param name="Refusal">Why it cannot be patched, if it cannot.</param>
public sealed record JournaledSite(
    long SiteOffset, SiteState State, string Reason, JournalEntry? Entry, JournalEvent.PatchRefused? Refusal);

/// <summary>What the next run of the same kernel can begin with.</summary>
/// <param name="Patches">To be verified and applied, in the order of their offsets.</param>
/// <param name="PlanAgain">Offsets of sites whose patches other versions of the templates made, in their order.</param>
public sealed record ReplayPlan(ImmutableArray<JournaledPatch> Patches, ImmutableArray<long> PlanAgain);

/// <summary>
/// What the events of one kernel add up to. Every sequence of events has a meaning: one that does not fit what came before it
/// changes nothing.
/// </summary>
public sealed record JournalState
{
    /// <summary>Before the first event.</summary>
    public static JournalState Empty { get; } = new();

    /// <summary>Number of the last transaction; 0 before there is one.</summary>
    public long LastTransaction { get; init; }

    /// <summary>All patches there ever were, by the offsets of their windows.</summary>
    public ImmutableSortedDictionary<long, JournalEntry> Entries { get; init; } = ImmutableSortedDictionary<long, JournalEntry>.Empty;

    /// <summary>
    /// Patches that were applied to other bytes at the same offset than the one in <see cref="Entries"/>: a kernel changes its own code
    /// while it boots, and each stretch of the boot has its own.
    /// </summary>
    public ImmutableArray<JournalEntry> Variants { get; init; } = [];

    /// <summary>Sites that cannot be patched, by their offsets.</summary>
    public ImmutableSortedDictionary<long, JournalEvent.PatchRefused> Refusals { get; init; } =
        ImmutableSortedDictionary<long, JournalEvent.PatchRefused>.Empty;

    /// <summary>Offsets that the user switched off.</summary>
    public ImmutableSortedSet<long> Disabled { get; init; } = [];

    /// <summary>Where the kernel lay in the last run that said so, for people; 0 when none did.</summary>
    public ulong KernelBase { get; init; }

    /// <summary>All sites, in the order of their offsets.</summary>
    public ImmutableArray<JournaledSite> Sites
    {
        get
        {
            var switched = Disabled.Where(offset => !Refusals.ContainsKey(offset)
                && !Entries.Values.Any(entry => entry.Patch.Covers(offset)));
            var patched = Entries.Values.Select(entry => entry.Patch.SiteOffset).ToHashSet();
            return
            [
                .. Entries.Values.Select(Site)
                    .Concat(Refusals.Values.Where(refusal => !patched.Contains(refusal.SiteOffset)).Select(Site))
                    .Concat(switched.Select(offset => new JournaledSite(offset, SiteState.Disabled, string.Empty, null, null)))
                    .OrderBy(site => site.SiteOffset),
            ];
        }
    }

    /// <summary>Takes one event in.</summary>
    /// <param name="happened">The event.</param>
    /// <returns>The new state; this very object when the event changes nothing.</returns>
    public JournalState Apply(JournalEvent happened) => happened switch
    {
        JournalEvent.PatchIntended intended => Intend(intended),
        JournalEvent.PatchApplied applied => ApplyPatches(applied),
        JournalEvent.PatchAborted aborted => Resolve(aborted.Transaction, aborted.Offsets, PatchStatus.Aborted, aborted.Reason),
        JournalEvent.PatchRefused refused => WithRefusals(Refusals.SetItem(refused.SiteOffset, refused), refused.KernelBase),
        JournalEvent.PatchReverted reverted => Change(
            reverted.Offset, entry => entry with { Status = PatchStatus.Reverted, Reason = reverted.Reason }),
        JournalEvent.PatchMismatched mismatched => Change(
            mismatched.Offset, entry => entry with { Status = PatchStatus.Mismatched, Reason = mismatched.Reason }),
        JournalEvent.SiteRetired retired => Change(
            retired.Offset, entry => entry with { Status = PatchStatus.Retired, Reason = retired.Reason }),
        JournalEvent.PatchObserved observed => Change(
            observed.Offset, entry => entry with { ExitsBefore = observed.Exits, PeriodBefore = WholeMilliseconds(observed.Period) }),
        JournalEvent.SiteDisabled disabled => WithDisabled(Disabled.Add(disabled.Offset)),
        JournalEvent.SiteEnabled enabled => WithDisabled(Disabled.Remove(enabled.Offset)),
        _ => this,
    };

    /// <summary>Whether the user switched off a site.</summary>
    /// <param name="siteOffset">Its offset.</param>
    public bool IsDisabled(long siteOffset) => Disabled.Contains(siteOffset);

    /// <summary>Whether the user switched off a site in a patch's window.</summary>
    /// <param name="patch">The patch.</param>
    public bool IsDisabled(JournaledPatch patch) => Disabled.Any(patch.Covers);

    /// <summary>What the next run of the same kernel can begin with.</summary>
    /// <param name="current">Names and versions of all templates there are now.</param>
    public ReplayPlan Replayable(IEnumerable<TemplateUse> current)
    {
        var known = current.ToHashSet();
        ImmutableArray<JournaledPatch> applied =
        [
            .. Entries.Values.Concat(Variants)
                .Where(entry => entry.Status == PatchStatus.Applied && !IsDisabled(entry.Patch))
                .OrderBy(entry => entry.Patch.Offset)
                .Select(entry => entry.Patch),
        ];
        return new ReplayPlan(
            [.. applied.Where(Fits)],
            [.. applied.Where(patch => !Fits(patch)).Select(patch => patch.SiteOffset).Distinct().Order()]);

        bool Fits(JournaledPatch patch) => !patch.Original.IsEmpty && !patch.Templates.IsEmpty && patch.Templates.All(known.Contains);
    }

    /// <summary>Why an intent cannot be stored, or null when it can.</summary>
    /// <param name="patches">What is to be applied.</param>
    public string? Objection(ImmutableArray<JournaledPatch> patches)
    {
        if (patches.IsDefaultOrEmpty)
        {
            return "the transaction has no patches";
        }

        if (patches.Select(patch => patch.Offset).Distinct().Count() != patches.Length)
        {
            return "two patches of the transaction begin at the same offset";
        }

        foreach (JournaledPatch patch in patches)
        {
            if (Entries.TryGetValue(patch.Offset, out JournalEntry? entry) && entry.Status == PatchStatus.Intended)
            {
                return $"transaction {entry.Transaction} still has a patch open at {Offsets.Text(patch.Offset)}";
            }
        }

        return null;
    }

    /// <summary>Why patches of a transaction cannot be resolved, or null when they can.</summary>
    /// <param name="transaction">The transaction.</param>
    /// <param name="offsets">The patches.</param>
    public string? Objection(long transaction, IEnumerable<long> offsets)
    {
        var seen = new HashSet<long>();
        foreach (long offset in offsets)
        {
            if (!seen.Add(offset))
            {
                return $"the patch at {Offsets.Text(offset)} is named twice";
            }

            if (!IsOpen(transaction, offset))
            {
                return $"transaction {transaction} has no patch open at {Offsets.Text(offset)}";
            }
        }

        return null;
    }

    /// <summary>Patches of a transaction whose fate is not known yet.</summary>
    /// <param name="transaction">The transaction.</param>
    public ImmutableArray<long> Open(long transaction) => [.. Entries.Keys.Where(offset => IsOpen(transaction, offset))];

    /// <summary>The events that resolve intents whose fate nobody can tell any more. The guest's memory is gone with its VMM,
    /// and a new guest has its original bytes, so they are aborted.</summary>
    /// <param name="reason">Why.</param>
    /// <param name="stillOpen">Transactions that somebody will yet complete.</param>
    public ImmutableArray<JournalEvent.PatchAborted> Unresolved(string reason, IReadOnlySet<long> stillOpen) =>
    [
        .. Entries.Values.Where(entry => entry.Status == PatchStatus.Intended && !stillOpen.Contains(entry.Transaction))
            .GroupBy(entry => entry.Transaction)
            .OrderBy(group => group.Key)
            .Select(group => new JournalEvent.PatchAborted(group.Key, [.. group.Select(entry => entry.Patch.Offset)], reason)),
    ];

    /// <inheritdoc/>
    public bool Equals(JournalState? other) => other is not null && LastTransaction == other.LastTransaction && KernelBase == other.KernelBase
        && Entries.SequenceEqual(other.Entries) && Variants.SequenceEqual(other.Variants) && Refusals.SequenceEqual(other.Refusals) && Disabled.SequenceEqual(other.Disabled);

    /// <inheritdoc/>
    public override int GetHashCode() => HashCode.Combine(LastTransaction, Entries.Count, Refusals.Count, Disabled.Count);

    // As they are stored, so that the state in memory is the state after a recovery.
    private static TimeSpan WholeMilliseconds(TimeSpan period) => TimeSpan.FromMilliseconds((long)period.TotalMilliseconds);

    private static SiteState StateOf(PatchStatus status) => status switch
    {
        PatchStatus.Intended => SiteState.Intended,
        PatchStatus.Applied => SiteState.Applied,
        PatchStatus.Aborted => SiteState.Aborted,
        PatchStatus.Reverted => SiteState.Reverted,
        PatchStatus.Retired => SiteState.Retired,
        _ => SiteState.Mismatched,
    };

    private JournaledSite Site(JournalEntry entry)
    {
        JournalEvent.PatchRefused? refusal = Refusals.GetValueOrDefault(entry.Patch.SiteOffset);
        bool refused = refusal is not null && entry.Status is not (PatchStatus.Applied or PatchStatus.Intended);
        SiteState state = refused ? SiteState.Refused : StateOf(entry.Status);
        return new JournaledSite(
            entry.Patch.SiteOffset,
            IsDisabled(entry.Patch) ? SiteState.Disabled : state,
            refused ? refusal!.Reason : entry.Reason,
            entry,
            refusal);
    }

    private JournaledSite Site(JournalEvent.PatchRefused refusal) => new(
        refusal.SiteOffset,
        IsDisabled(refusal.SiteOffset) ? SiteState.Disabled : SiteState.Refused,
        refusal.Reason,
        Entry: null,
        refusal);

    private bool IsOpen(long transaction, long offset) => Entries.TryGetValue(offset, out JournalEntry? entry)
        && entry.Status == PatchStatus.Intended && entry.Transaction == transaction;

    private JournalState Intend(JournalEvent.PatchIntended intended)
    {
        var entries = Entries.ToBuilder();
        var refusals = Refusals.ToBuilder();
        List<JournalEntry> variants = [.. Variants];
        foreach (JournaledPatch patch in intended.Patches)
        {
            JournalEntry? before = Entries.GetValueOrDefault(patch.Offset);
            _ = variants.RemoveAll(variant => variant.Patch.Offset == patch.Offset && !variant.Patch.IsVariantOf(patch));
            if (before is { Status: PatchStatus.Applied } && before.Patch.IsVariantOf(patch))
            {
                variants.Add(before);
            }

            entries[patch.Offset] = new JournalEntry(
                patch,
                PatchStatus.Intended,
                string.Empty,
                intended.Transaction,
                before?.ExitsBefore ?? 0,
                before?.PeriodBefore ?? TimeSpan.Zero);

            // The planner has found a way.
            refusals.Remove(patch.SiteOffset);
        }

        return this with
        {
            LastTransaction = Math.Max(LastTransaction, intended.Transaction),
            Entries = entries.ToImmutable(),
            Variants = [.. variants],
            Refusals = refusals.ToImmutable(),
            KernelBase = intended.KernelBase != 0 ? intended.KernelBase : KernelBase,
        };
    }

    private JournalState ApplyPatches(JournalEvent.PatchApplied applied)
    {
        JournalState state = Resolve(applied.Transaction, applied.Offsets, PatchStatus.Applied, string.Empty);
        foreach (long offset in applied.Offsets.Where(offset => IsOpen(applied.Transaction, offset)))
        {
            JournalEntry now = state.Entries[offset];

            // An older window of another shape over the same bytes, not over others, cannot be in force any more, nor be replayed.
            // What the other stretches of the boot have at its offset stays.
            ImmutableArray<JournalEntry> kept = state.Variants.RemoveAll(old => IsReplaced(old, now));
            foreach (JournalEntry old in state.Entries.Values.Where(old => IsReplaced(old, now)))
            {
                state = state.Change(
                    old.Patch.Offset,
                    entry => entry with { Status = PatchStatus.Reverted, Reason = "another window was patched instead" });
            }

            state = state.WithVariants(kept);
        }

        return state;
    }

    private static bool IsReplaced(JournalEntry old, JournalEntry now) => old.Status == PatchStatus.Applied
        && old.Patch.Offset != now.Patch.Offset && old.Patch.Offset < now.Patch.End && now.Patch.Offset < old.Patch.End
        && old.Transaction != now.Transaction && !old.Patch.IsVariantOf(now.Patch);

    private JournalState Resolve(long transaction, ImmutableArray<long> offsets, PatchStatus status, string reason)
    {
        JournalState state = this;
        foreach (long offset in offsets.Where(offset => IsOpen(transaction, offset)))
        {
            state = state.Change(offset, entry => entry with { Status = status, Reason = reason });
        }

        return state;
    }

    private JournalState Change(long offset, Func<JournalEntry, JournalEntry> change)
    {
        if (!Entries.TryGetValue(offset, out JournalEntry? entry))
        {
            return this;
        }

        JournalEntry changed = change(entry);
        if (changed == entry)
        {
            return this;
        }

        // What ends the patch at an offset ends it for whatever bytes it was made.
        return this with
        {
            Entries = Entries.SetItem(offset, changed),
            Variants = changed.Status is PatchStatus.Reverted or PatchStatus.Retired
                ? Variants.RemoveAll(variant => variant.Patch.Offset == offset)
                : Variants,
        };
    }

    private JournalState WithRefusals(ImmutableSortedDictionary<long, JournalEvent.PatchRefused> refusals, ulong kernelBase) =>
        refusals == Refusals
            ? this
            : this with { Refusals = refusals, KernelBase = kernelBase != 0 ? kernelBase : KernelBase };

    private JournalState WithVariants(ImmutableArray<JournalEntry> variants) =>
        variants == Variants ? this : this with { Variants = variants };

    private JournalState WithDisabled(ImmutableSortedSet<long> disabled) =>
        disabled == Disabled ? this : this with { Disabled = disabled };
}
