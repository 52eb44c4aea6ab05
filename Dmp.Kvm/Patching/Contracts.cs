using System.Collections.Immutable;
using Dmp.Kvm.Cpu;

namespace Dmp.Kvm.Patching;

/// <summary>A template and its version, as a plan names it and the journal keeps it.</summary>
/// <param name="Name">Name, in kebab case: "pushf".</param>
/// <param name="Version">Counted up whenever the code it makes changes.</param>
public sealed record TemplateUse(string Name, int Version);

/// <summary>
/// Padding between two functions that holds the jump to an implant, where the window itself has room for a short jump only.
/// </summary>
/// <param name="Address">Address of its first byte.</param>
/// <param name="Original">The guest's bytes there.</param>
public sealed record Springboard(ulong Address, ImmutableArray<byte> Original)
{
    /// <inheritdoc/>
    public bool Equals(Springboard? other) =>
        other is not null && Address == other.Address && Original.AsSpan().SequenceEqual(other.Original.AsSpan());

    /// <inheritdoc/>
    public override int GetHashCode() => HashCode.Combine(Address, Original.Length);
}

/// <summary>
/// What is to be changed at a site: a window of whole guest instructions that becomes a jump to an implant. Says nothing about where
/// the implant lies, so that it means the same in every run of the same kernel.
/// </summary>
/// <param name="Site">Address of the hot instruction; it lies in the window.</param>
/// <param name="Window">Address of the first byte that is replaced.</param>
/// <param name="Original">The guest's bytes there, all of the window: at least five without a springboard, two with it.</param>
/// <param name="Templates">The templates of the sensitive instructions in the window, in their order; at least one.</param>
/// <param name="Springboard">Where the window's short jump leads; null when the window itself jumps to the implant.</param>
public sealed record PatchPlan(
    ulong Site,
    ulong Window,
    ImmutableArray<byte> Original,
    ImmutableArray<TemplateUse> Templates,
    Springboard? Springboard = null)
{
    /// <summary>Address of the first byte behind the window.</summary>
    public ulong End => Window + (ulong)Original.Length;

    /// <summary>Whether another plan does the same to the guest's code, whatever site it was made for.</summary>
    public bool IsSamePatch(PatchPlan other)
    {
        ArgumentNullException.ThrowIfNull(other);
        return Window == other.Window && Springboard == other.Springboard
            && Original.AsSpan().SequenceEqual(other.Original.AsSpan())
            && Templates.AsSpan().SequenceEqual(other.Templates.AsSpan());
    }

    /// <inheritdoc/>
    public bool Equals(PatchPlan? other) => other is not null && Site == other.Site && Window == other.Window
        && Original.AsSpan().SequenceEqual(other.Original.AsSpan())
        && Springboard == other.Springboard
        && Templates.AsSpan().SequenceEqual(other.Templates.AsSpan());

    /// <inheritdoc/>
    public override int GetHashCode() => HashCode.Combine(Site, Window, Original.Length, Templates.Length);
}

/// <summary>What the planner says about a site.</summary>
public abstract record PlanResult
{
    private PlanResult()
    {
    }

    /// <summary>It can be patched.</summary>
    /// <param name="Plan">How.</param>
    public sealed record Planned(PatchPlan Plan) : PlanResult;

    /// <summary>It cannot: the trap stays. Asking again is of no use until the bytes change.</summary>
    /// <param name="Reason">Why, in a few words.</param>
    /// <param name="Bytes">The instruction's bytes; empty when they cannot be read.</param>
    public sealed record Refused(string Reason, ImmutableArray<byte> Bytes) : PlanResult;
}

/// <summary>A patch whose implant lies in the arena; the guest's code is still unchanged.</summary>
/// <param name="Plan">What it does.</param>
/// <param name="Implant">Address of the implant in the kernel view.</param>
/// <param name="Replacement">What the window's bytes become.</param>
public sealed record PreparedPatch(PatchPlan Plan, ulong Implant, ImmutableArray<byte> Replacement);

/// <summary>Why a patch could not be prepared.</summary>
/// <param name="Reason">In a few words.</param>
/// <param name="IsFinal">Whether asking again is of no use until the bytes change.</param>
public sealed record PreparationFailure(string Reason, bool IsFinal);

/// <summary>Something that happened to a patch while the guest ran, on a vCPU's thread.</summary>
/// <param name="Plan">The patch.</param>
/// <param name="What">What happened.</param>
/// <param name="Detail">Why, or empty.</param>
public sealed record PatchNotice(PatchPlan Plan, PatchNoticeKind What, string Detail);

/// <summary>Kinds of <see cref="PatchNotice"/>.</summary>
public enum PatchNoticeKind
{
    /// <summary>A patch of an earlier run was verified and applied before the first execution of its page.</summary>
    Replayed,

    /// <summary>A patch of an earlier run cannot be made in this one.</summary>
    Mismatched,

    /// <summary>The guest wrote to the page: the original bytes are back.</summary>
    Dirtied,

    /// <summary>The page of a dirty patch runs again and the window's bytes are the same: the patch is back.</summary>
    Reinstated,

    /// <summary>The page of a dirty patch runs again and the window's bytes are others. Should they come back, so does the patch.</summary>
    Overwritten,
}

/// <summary>A patch as people read it.</summary>
/// <param name="Before">Disassembly of the window before, one instruction a line.</param>
/// <param name="After">Disassembly of the implant, one instruction a line.</param>
public sealed record PatchDescription(ImmutableArray<string> Before, ImmutableArray<string> After);

/// <summary>
/// Plans patches and carries them out on one machine. <see cref="TryApply"/> and <see cref="Revert"/> change guest code and need every
/// vCPU paused; every other member may be called by any thread at any time.
/// </summary>
public interface IPatchEngine
{
    /// <summary>Where the kernel's code begins: the journal keeps sites as offsets from it.</summary>
    ulong KernelBase { get; }

    /// <summary>Names and versions of all templates there are.</summary>
    ImmutableArray<TemplateUse> Templates { get; }

    /// <summary>Plans a patch for a site. Without effect on the guest; bytes that the guest changes meanwhile are found by
    /// <see cref="TryApply"/>.</summary>
    /// <param name="site">Address of the instruction that exits.</param>
    /// <param name="kind">What its exits are.</param>
    PlanResult Plan(ulong site, ExitKind kind);

    /// <summary>Whether the guest's code at an address is still what it was. Where it cannot be read, it is not.</summary>
    bool HasBytes(ulong address, ReadOnlySpan<byte> bytes);

    /// <summary>Writes the implant of a plan into the arena. Without effect on the guest.</summary>
    /// <param name="plan">The plan.</param>
    /// <param name="failure">Why it could not be done; null when it could.</param>
    /// <returns>Null when it could not be done: no arena memory in reach, overlap with another patch.</returns>
    PreparedPatch? Prepare(PatchPlan plan, out PreparationFailure? failure);

    /// <summary>Verifies the window's bytes and replaces them. Every vCPU is paused.</summary>
    /// <param name="patch">The patch.</param>
    /// <param name="reason">Why nothing was changed.</param>
    /// <returns>Whether the patch is in the guest's code now.</returns>
    bool TryApply(PreparedPatch patch, out string reason);

    /// <summary>A prepared patch will not be applied for now: it is in no other patch's way any more. Does nothing to one in force.</summary>
    /// <param name="patch">The patch.</param>
    void Discard(PreparedPatch patch);

    /// <summary>Puts the original bytes back, and forgets the patch. Every vCPU is paused.</summary>
    /// <param name="window">The patch.</param>
    /// <returns>Whether there was such a patch.</returns>
    bool Revert(ulong window);

    /// <summary>
    /// Hands over the patches of an earlier run. Each is verified and applied whenever its page begins to be executed with the bytes
    /// that it was made for. Before the guest runs, or it may miss the first execution of a page.
    /// </summary>
    void Replay(IReadOnlyList<PatchPlan> plans);

    /// <summary>The patches of an earlier run whose bytes have not been found so far.</summary>
    ImmutableArray<PatchPlan> Unused();

    /// <summary>The patches in the guest's code.</summary>
    ImmutableArray<PatchPlan> InForce();

    /// <summary>Takes what happened since the last call, in order, nothing lost.</summary>
    /// <param name="notices">Receives the notices; cleared first.</param>
    void TakeNotices(List<PatchNotice> notices);

    /// <summary>Compares the guest's code with what it should be: one line for every patch in force whose bytes are not there.
    /// Every vCPU is paused.</summary>
    ImmutableArray<string> Verify();

    /// <summary>Disassembles a patch; null when its templates are not there.</summary>
    PatchDescription? Describe(PatchPlan plan);
}
