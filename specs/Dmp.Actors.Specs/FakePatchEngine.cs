using System.Collections.Concurrent;
using System.Collections.Immutable;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Specs;

/// <summary>
/// An engine whose guest code is a dictionary. Every site can be patched, in a window of five bytes of its own, unless the spec says
/// otherwise; it remembers in which order it was asked to change what.
/// </summary>
internal sealed class FakePatchEngine : IPatchEngine
{
    public const ulong Base = 0xffffffff81000000;

    public static readonly TemplateUse Cli = new("cli", 1);

    private readonly ConcurrentQueue<PatchNotice> notices = new();

    public ConcurrentQueue<string> Calls { get; } = new();

    /// <summary>Windows that are patched now.</summary>
    public ConcurrentDictionary<ulong, PatchPlan> InForce { get; } = new();

    /// <summary>Windows whose bytes are not what they were when they were planned.</summary>
    public ConcurrentDictionary<ulong, string> Changed { get; } = new();

    /// <summary>Sites that cannot be patched.</summary>
    public ConcurrentDictionary<ulong, PlanResult.Refused> Unpatchable { get; } = new();

    /// <summary>Sites that were planned, in order.</summary>
    public ConcurrentQueue<ulong> Asked { get; } = new();

    /// <summary>Plans handed over for a replay.</summary>
    public ConcurrentQueue<PatchPlan> Replays { get; } = new();

    /// <summary>Called before each change.</summary>
    public Action? Changing { get; set; }

    /// <summary>Windows at which applying throws.</summary>
    public HashSet<ulong> ThrowAtApply { get; } = [];

    /// <summary>Windows at which taking back throws.</summary>
    public HashSet<ulong> ThrowAtRevert { get; } = [];

    /// <summary>How often the next calls for notices throw.</summary>
    public int FailingNotices { get; set; }

    public bool BytesAreTheSame { get; set; } = true;

    public ulong KernelBase => Base;

    public ImmutableArray<TemplateUse> Templates => [Cli];

    public static PatchPlan PlanOf(ulong site) => new(site, site, [0xfa, 0x90, 0x90, 0x90, 0x90], [Cli]);

    public static PreparedPatch PreparedOf(ulong site) => new(PlanOf(site), site + 0x1000, [0xe9, 0, 0, 0, 0]);

    public void Notice(PatchNotice notice) => notices.Enqueue(notice);

    public PlanResult Plan(ulong site, ExitKind kind)
    {
        Asked.Enqueue(site);
        return Unpatchable.TryGetValue(site, out PlanResult.Refused? refused) ? refused : new PlanResult.Planned(PlanOf(site));
    }

    public bool HasBytes(ulong address, ReadOnlySpan<byte> bytes) => BytesAreTheSame;

    public PreparedPatch? Prepare(PatchPlan plan, out PreparationFailure? failure)
    {
        if (Unpreparable.TryGetValue(plan.Window, out failure))
        {
            return null;
        }

        return new PreparedPatch(plan, plan.Window + 0x1000, [0xe9, 0, 0, 0, 0]);
    }

    public bool TryApply(PreparedPatch patch, out string reason)
    {
        ulong window = patch.Plan.Window;
        Calls.Enqueue($"apply {window:x}");
        Changing?.Invoke();
        if (ThrowAtApply.Contains(window))
        {
            // Worse than an engine should be: the code is changed already.
            InForce[window] = patch.Plan;
            throw new InvalidOperationException("injected into the engine");
        }

        if (Changed.TryGetValue(window, out string? why))
        {
            reason = why;
            return false;
        }

        InForce[window] = patch.Plan;
        reason = "";
        return true;
    }

    public bool Revert(ulong window)
    {
        Calls.Enqueue($"revert {window:x}");
        Changing?.Invoke();
        return ThrowAtRevert.Contains(window)
            ? throw new InvalidOperationException("injected into the way back")
            : InForce.TryRemove(window, out _);
    }

    public void Replay(IReadOnlyList<PatchPlan> plans)
    {
        if (FailingReplay)
        {
            throw new InvalidOperationException("injected into the replay");
        }

        foreach (PatchPlan plan in plans)
        {
            Replays.Enqueue(plan);
        }
    }

    public ImmutableArray<PatchPlan> Unused() => [];

    public void TakeNotices(List<PatchNotice> taken)
    {
        if (FailingNotices > 0)
        {
            FailingNotices--;
            throw new InvalidOperationException("injected into the notices");
        }

        taken.Clear();
        while (notices.TryDequeue(out PatchNotice? notice))
        {
            taken.Add(notice);
        }
    }

    /// <summary>Patches whose bytes are not in the guest's code.</summary>
    public ConcurrentQueue<string> Differences { get; } = new();

    /// <summary>Windows of prepared patches that were given up.</summary>
    public ConcurrentQueue<ulong> Discarded { get; } = new();

    /// <summary>Whether the next replay throws.</summary>
    public bool FailingReplay { get; set; }

    /// <summary>Windows at which preparing fails, and why.</summary>
    public ConcurrentDictionary<ulong, PreparationFailure> Unpreparable { get; } = new();

    public void Discard(PreparedPatch patch) => Discarded.Enqueue(patch.Plan.Window);

    ImmutableArray<PatchPlan> IPatchEngine.InForce() => [.. InForce.Values];

    public ImmutableArray<string> Verify() => [.. Differences];

    public PatchDescription? Describe(PatchPlan plan) => null;
}
