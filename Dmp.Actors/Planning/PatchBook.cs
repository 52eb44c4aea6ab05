using System.Collections.Immutable;
using Dmp.Actors.Exits;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Planning;

/// <summary>
/// What the planner knows of each site and each patch, and what follows for what it may do next. Belongs to the supervisor and is lent to
/// the planner, so that a restarted planner goes on where its predecessor failed; only ever touched by one of them at a time. No effects.
/// </summary>
/// <param name="patchLimit">Patches that a machine may have.</param>
public sealed class PatchBook(int patchLimit)
{
    private const string SwitchedOff = "switched off by the user";

    private readonly Dictionary<ulong, RefusedSite> refused = [];
    private readonly Dictionary<ulong, string> candidates = [];
    private readonly List<Entry> entries = [];
    private readonly HashSet<ulong> besideDisabled = [];
    private ImmutableArray<ulong> disabled = [];

    /// <summary>Whether the patches of earlier runs have been handed over, or given up.</summary>
    public bool ReplayStarted { get; set; }

    /// <summary>Patches applied in transactions.</summary>
    public int Applied { get; private set; }

    /// <summary>Patches replayed.</summary>
    public int Replayed { get; private set; }

    /// <summary>Patches taken back on request.</summary>
    public int Reverted { get; private set; }

    /// <summary>Patches intended and not applied.</summary>
    public int Aborted { get; private set; }

    /// <summary>The patches in the guest's code, or about to come back into it.</summary>
    public ImmutableArray<PatchPlan> Standing =>
        [.. entries.Where(entry => entry.State is PatchedSiteState.Applied or PatchedSiteState.Dirty).Select(entry => entry.Plan)];

    /// <summary>The patches that were taken back on request.</summary>
    public ImmutableArray<PatchPlan> Withdrawn =>
        [.. entries.Where(entry => entry.State == PatchedSiteState.Disabled).Select(entry => entry.Plan)];

    /// <summary>Whether any patch was ever in force at a window's address.</summary>
    public bool WasUsed(ulong window) => entries.Exists(entry => entry.Plan.Window == window);

    /// <summary>The user switched these sites off.</summary>
    public void Disable(ImmutableArray<ulong> sites) => disabled = sites;

    /// <summary>A site's window, as it is planned now, holds one that the user switched off.</summary>
    public void SwitchOff(ulong site)
    {
        _ = candidates.Remove(site);
        _ = besideDisabled.Add(site);
    }

    /// <summary>Whether the user switched off a site in a plan's window.</summary>
    public bool IsDisabled(PatchPlan plan)
    {
        ArgumentNullException.ThrowIfNull(plan);
        return disabled.Any(site => site >= plan.Window && site < plan.End);
    }

    /// <summary>Whether a hot site is to be planned.</summary>
    /// <param name="site">The site.</param>
    /// <param name="hasBytes">Whether the guest's code at an address is still what it was.</param>
    /// <param name="planned">Patches that are planned already, and not yet entered here.</param>
    /// <param name="reason">Why not.</param>
    public bool WantsPlan(HotSite site, Func<ulong, ImmutableArray<byte>, bool> hasBytes, int planned, out string reason)
    {
        ArgumentNullException.ThrowIfNull(site);
        ArgumentNullException.ThrowIfNull(hasBytes);
        foreach (Entry entry in entries)
        {
            bool covers = site.Rip >= entry.Plan.Window && site.Rip < entry.Plan.End;
            if (covers && entry.State is PatchedSiteState.Applied or PatchedSiteState.Dirty or PatchedSiteState.Disabled)
            {
                reason = "a patch covers it";
                return false;
            }
        }

        if (disabled.Contains(site.Rip))
        {
            reason = SwitchedOff;
            return false;
        }

        // Bytes that could not be read are no reason to stay away: they may be there by now.
        if (refused.TryGetValue(site.Rip, out RefusedSite? before) && !before.Bytes.IsEmpty && hasBytes(site.Rip, before.Bytes))
        {
            reason = before.Reason;
            return false;
        }

        reason = "";
        _ = refused.Remove(site.Rip);
        if (Standing.Length + planned >= patchLimit)
        {
            reason = $"the machine has {patchLimit} patches";
            candidates[site.Rip] = reason;
            return false;
        }

        return true;
    }

    /// <summary>A site cannot be patched, until its bytes change.</summary>
    public void Refuse(ulong site, ImmutableArray<byte> bytes, string reason)
    {
        _ = candidates.Remove(site);
        refused[site] = new RefusedSite(bytes, reason);
    }

    /// <summary>A site could not be patched this time.</summary>
    public void Postpone(ulong site, string reason) => candidates[site] = reason;

    /// <summary>A transaction applied a patch.</summary>
    public void Apply(PatchPlan plan)
    {
        Applied++;
        Enter(plan, PatchedSiteState.Applied, "");
    }

    /// <summary>A patch was not applied. One that had been taken back on request is nobody's any more: its site is planned anew when it
    /// is hot, with the bytes that it has by then.</summary>
    /// <param name="plan">The patch.</param>
    /// <param name="reason">Why not.</param>
    /// <param name="wasIntended">Whether a transaction had durably intended it.</param>
    public void Abort(PatchPlan plan, string reason, bool wasIntended)
    {
        ArgumentNullException.ThrowIfNull(plan);
        Aborted += wasIntended ? 1 : 0;
        _ = entries.RemoveAll(entry => entry.State == PatchedSiteState.Disabled && entry.Plan.IsSamePatch(plan));
        candidates[plan.Site] = reason;
    }

    /// <summary>A patch was taken back on request.</summary>
    public void Withdraw(PatchPlan plan, string reason)
    {
        Reverted++;
        Enter(plan, PatchedSiteState.Disabled, reason);
    }

    /// <summary>Something happened to a patch while the guest ran.</summary>
    public void Note(PatchNotice notice)
    {
        ArgumentNullException.ThrowIfNull(notice);

        // It happened before the patch was taken back: until that is undone, nothing happens to it any more.
        if (notice.What is PatchNoticeKind.Dirtied or PatchNoticeKind.Reinstated or PatchNoticeKind.Overwritten
            && entries.Exists(entry => entry.State == PatchedSiteState.Disabled && entry.Plan.IsSamePatch(notice.Plan)))
        {
            return;
        }

        switch (notice.What)
        {
            case PatchNoticeKind.Replayed:
                Replayed++;
                Enter(notice.Plan, PatchedSiteState.Applied, "");
                break;
            case PatchNoticeKind.Reinstated:
                Enter(notice.Plan, PatchedSiteState.Applied, "");
                break;
            case PatchNoticeKind.Dirtied:
                Enter(notice.Plan, PatchedSiteState.Dirty, notice.Detail);
                break;
            case PatchNoticeKind.Overwritten:
                Enter(notice.Plan, PatchedSiteState.Retired, notice.Detail);
                break;
            case PatchNoticeKind.Mismatched:
                candidates[notice.Plan.Site] = notice.Detail;
                break;
        }
    }

    /// <summary>What patching has come to so far.</summary>
    public PatchSummary Summarize() => new()
    {
        Applied = Applied,
        Replayed = Replayed,
        Refused = refused.Count,
        Reverted = Reverted,
        Aborted = Aborted,
        InForce = entries.Count(entry => entry.State == PatchedSiteState.Applied),
        Sites = candidates.Select(site => KeyValuePair.Create(site.Key, new PatchedSite(PatchedSiteState.Candidate, "", site.Value)))
            .Concat(refused.Select(site =>
                KeyValuePair.Create(site.Key, new PatchedSite(PatchedSiteState.Refused, "", site.Value.Reason))))
            .Concat(disabled.Union(besideDisabled).Select(site =>
                KeyValuePair.Create(site, new PatchedSite(PatchedSiteState.Disabled, "", SwitchedOff))))
            .GroupBy(site => site.Key)
            .ToImmutableSortedDictionary(group => group.Key, group => group.Last().Value),
        Windows =
        [
            .. entries.Select(entry => (
                entry.Plan.Window,
                entry.Plan.End,
                new PatchedSite(entry.State, string.Join('+', entry.Plan.Templates.Select(use => use.Name)), entry.Reason))),
        ],
    };

    private void Enter(PatchPlan plan, PatchedSiteState state, string reason)
    {
        _ = candidates.Remove(plan.Site);
        int index = entries.FindIndex(entry => entry.Plan.IsSamePatch(plan));
        var changed = new Entry(plan, state, reason);
        if (index >= 0)
        {
            entries[index] = changed;
        }
        else
        {
            entries.Add(changed);
        }
    }

    private sealed record Entry(PatchPlan Plan, PatchedSiteState State, string Reason);

    private sealed record RefusedSite(ImmutableArray<byte> Bytes, string Reason);
}
