using System.Collections.Immutable;
using Dmp.Actors.Exits;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Planning;

/// <summary>Messages of <see cref="PatchPlanner"/>. It also takes the answers of the journal and of the quiesce coordinator.</summary>
public static class PlanningProtocol
{
    /// <summary>Sites became hot. No answer.</summary>
    /// <param name="At">Time since the guest's start.</param>
    /// <param name="Sites">Hottest first.</param>
    public sealed record HotSitesDetected(TimeSpan At, ImmutableArray<HotSite> Sites);

    /// <summary>
    /// Switch patching on or off. Off: all patches are taken back. On: they are applied again. Answered with <see cref="PatchingSet"/>
    /// when it is done, or <see cref="Refused"/>. An Off that is refused leaves patching on; what it has taken back comes back with the
    /// next On.
    /// </summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Enabled">Whether guest code is to be patched.</param>
    public sealed record SetPatching(long RequestId, bool Enabled);

    /// <summary>The run ends: begin nothing more. Answered with <see cref="Stopped"/> when no transaction is under way.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Stop(long RequestId);

    /// <summary>To the parent, once: what is to be replayed is with the patch engine, or nothing will be; the guest may start.</summary>
    public sealed record Ready;

    /// <summary>Patching is on or off now.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Enabled">Which.</param>
    /// <param name="Patches">Patches that were applied, or taken back.</param>
    public sealed record PatchingSet(long RequestId, bool Enabled, int Patches);

    /// <summary>The request cannot be carried out.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Reason">Why.</param>
    public sealed record Refused(long RequestId, string Reason);

    /// <summary>No transaction is under way, and none will begin.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Summary">What became of the sites.</param>
    public sealed record Stopped(long RequestId, PatchSummary Summary);
}

/// <summary>States of a site, as the report names them.</summary>
public enum PatchedSiteState
{
    /// <summary>It is hot, and nothing has come of that yet.</summary>
    Candidate,

    /// <summary>It cannot be patched.</summary>
    Refused,

    /// <summary>It is patched.</summary>
    Applied,

    /// <summary>The user switched it off, or all patching.</summary>
    Disabled,

    /// <summary>The guest wrote to its page; the patch comes back when the page runs again.</summary>
    Dirty,

    /// <summary>The guest put other bytes there.</summary>
    Retired,
}

/// <summary>What became of a site.</summary>
/// <param name="State">Its state.</param>
/// <param name="Template">The templates of its patch, "+" between them; empty without one.</param>
/// <param name="Reason">Why, where the state has a reason.</param>
public sealed record PatchedSite(PatchedSiteState State, string Template, string Reason);

/// <summary>What patching came to in a run.</summary>
public sealed record PatchSummary
{
    /// <summary>Before anything was patched.</summary>
    public static PatchSummary Empty { get; } = new();

    /// <summary>Patches applied in transactions of this run.</summary>
    public int Applied { get; init; }

    /// <summary>Patches of earlier runs that were verified and applied.</summary>
    public int Replayed { get; init; }

    /// <summary>Sites that cannot be patched.</summary>
    public int Refused { get; init; }

    /// <summary>Patches taken back on request.</summary>
    public int Reverted { get; init; }

    /// <summary>Patches that a transaction intended and did not apply.</summary>
    public int Aborted { get; init; }

    /// <summary>Patches in the guest's code at the end.</summary>
    public int InForce { get; init; }

    /// <summary>Patches that were found, when the vCPUs had stopped, in the guest's code as they should be and in the journal as applied;
    /// null when nobody looked.</summary>
    public int? Verified { get; init; }

    /// <summary>Patches in force that were not; null when nobody looked.</summary>
    public int? Mismatched { get; init; }

    /// <summary>All sites that were ever looked at, by address; every instruction site of a patch's window is there under its own.</summary>
    public ImmutableSortedDictionary<ulong, PatchedSite> Sites { get; init; } =
        ImmutableSortedDictionary<ulong, PatchedSite>.Empty;

    /// <summary>The windows that were patched.</summary>
    public ImmutableArray<(ulong Start, ulong End, PatchedSite Site)> Windows { get; init; } = [];

    /// <summary>What became of the site at an address; null when nobody looked at it.</summary>
    /// <param name="rip">Address of an instruction.</param>
    public PatchedSite? Find(ulong rip)
    {
        PatchedSite? found = null;
        foreach ((ulong start, ulong end, PatchedSite site) in Windows)
        {
            // Of several windows over the same bytes, one at a time is in force.
            if (rip >= start && rip < end && (found is null || site.State == PatchedSiteState.Applied))
            {
                found = site;
            }
        }

        return found ?? Sites.GetValueOrDefault(rip);
    }
}
