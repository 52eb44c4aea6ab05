using System.Collections.Immutable;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Locking;
using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Patching;

/// <summary>
/// The patches of one machine: plans them, keeps their implants in the arena, and has them in the guest's code while the pages they
/// belong to run. A page that the guest writes to loses its patches with its scan, and gets them back with the next scan where the bytes
/// are still the same; no vCPU enters the page in between, so that needs no quiescence. One that stands in an
/// implant goes on there, as it would with code that it had fetched before: implants stay where they are.
/// </summary>
internal sealed class PatchEngine : IPatchEngine, IPagePatches
{
    private readonly OrderedLock sync = new(LockRank.PatchEngine);
    private readonly CodePages code;
    private readonly IGuestText text;
    private readonly TemplateSet templates;
    private readonly Arena arena;
    private readonly Dictionary<ulong, List<Patch>> pages = [];
    private readonly List<PatchNotice> notices = [];

    internal PatchEngine(CodePages code, GuestText text, TemplateSet templates, MappedMemory monitor, ulong kernelBase)
    {
        this.code = code;
        this.text = text;
        this.templates = templates;
        arena = new Arena(monitor);
        KernelBase = kernelBase;
        code.Patches = this;
        text.Reserved = IsReserved;
        foreach (EncodedImplant gate in MonitorGates.All())
        {
            arena.Place(gate.Address, gate.Code.Length);
            arena.Write(gate.Address, gate.Code.AsSpan());
            Map.Add(gate);
        }
    }

    /// <inheritdoc/>
    public ulong KernelBase { get; }

    /// <inheritdoc/>
    public ImmutableArray<TemplateUse> Templates => templates.Uses;

    /// <summary>What addresses in the arena mean.</summary>
    internal ImplantMap Map { get; } = new();

    /// <inheritdoc/>
    public PlanResult Plan(ulong site, ExitKind kind) => new WindowPlanner(text, templates).Plan(site);

    /// <inheritdoc/>
    public bool HasBytes(ulong address, ReadOnlySpan<byte> bytes)
    {
        Span<byte> now = stackalloc byte[bytes.Length];
        return text.Read(address, now) == bytes.Length && now.SequenceEqual(bytes);
    }

    /// <inheritdoc/>
    public PreparedPatch? Prepare(PatchPlan plan, out PreparationFailure? failure)
    {
        ArgumentNullException.ThrowIfNull(plan);
        Patch? patch;
        using (sync.Enter())
        {
            if (IsInTheWay(plan, out failure))
            {
                return null;
            }

            patch = Find(plan);
        }

        string reason = "";
        patch ??= Build(plan, out reason);
        if (patch is null)
        {
            failure = new PreparationFailure(reason, IsFinal: true);
            return null;
        }

        using (sync.Enter())
        {
            // Meanwhile a page may have got a patch back. The implant stays for the next time.
            patch = FindOrAdd(patch);
            if (IsInTheWay(plan, out failure))
            {
                return null;
            }

            if (patch.State != PatchState.InForce)
            {
                patch.State = PatchState.Prepared;
            }

            return patch.Prepared;
        }
    }

    /// <inheritdoc/>
    public bool TryApply(PreparedPatch patch, out string reason)
    {
        ArgumentNullException.ThrowIfNull(patch);
        string why = "the patch is not prepared any more";
        bool applied = false;
        code.Locked(() =>
        {
            using (sync.Enter())
            {
                List<Patch> page = PatchesOf(patch.Plan.Window);
                if (page.Find(other => other.Prepared == patch && other.State != PatchState.Spare) is { } known)
                {
                    applied = known.State == PatchState.InForce || TryEnforce(known, out why);
                    if (!applied)
                    {
                        _ = page.Remove(known);
                    }
                }
            }
        });
        reason = applied ? "" : why;
        return applied;
    }

    /// <inheritdoc/>
    public void Discard(PreparedPatch patch)
    {
        ArgumentNullException.ThrowIfNull(patch);
        using (sync.Enter())
        {
            if (PatchesOf(patch.Plan.Window).Find(other => other.Prepared == patch) is { State: PatchState.Prepared } known)
            {
                // Its implant stays, for arena memory does not come back: who prepares the same again finds it.
                known.State = PatchState.Spare;
            }
        }
    }

    /// <inheritdoc/>
    public bool Revert(ulong window)
    {
        bool found = false;
        code.Locked(() =>
        {
            using (sync.Enter())
            {
                List<Patch> page = PatchesOf(window);
                foreach (Patch patch in page)
                {
                    if (patch.Plan.Window != window || patch.State == PatchState.Spare)
                    {
                        continue;
                    }

                    found = true;
                    if (patch.State == PatchState.InForce)
                    {
                        Withdraw(patch);
                    }

                    patch.State = PatchState.Spare;
                }
            }
        });
        return found;
    }

    /// <inheritdoc/>
    public void Replay(IReadOnlyList<PatchPlan> plans)
    {
        ArgumentNullException.ThrowIfNull(plans);
        foreach (PatchPlan plan in plans)
        {
            Patch? patch = Build(plan, out string reason);
            using (sync.Enter())
            {
                if (patch is null)
                {
                    notices.Add(new PatchNotice(plan, PatchNoticeKind.Mismatched, reason));
                }
                else if (FindOrAdd(patch) == patch)
                {
                    patch.State = PatchState.Replayed;
                }
            }
        }
    }

    /// <inheritdoc/>
    public ImmutableArray<PatchPlan> Unused()
    {
        using (sync.Enter())
        {
            return [.. pages.Values.SelectMany(page => page).Where(patch => patch.State == PatchState.Replayed).Select(patch => patch.Plan)];
        }
    }

    /// <inheritdoc/>
    public ImmutableArray<PatchPlan> InForce()
    {
        using (sync.Enter())
        {
            return [.. pages.Values.SelectMany(page => page).Where(patch => patch.State == PatchState.InForce).Select(patch => patch.Plan)];
        }
    }

    /// <inheritdoc/>
    public void TakeNotices(List<PatchNotice> notices)
    {
        ArgumentNullException.ThrowIfNull(notices);
        notices.Clear();
        using (sync.Enter())
        {
            notices.AddRange(this.notices);
            this.notices.Clear();
        }
    }

    /// <inheritdoc/>
    public ImmutableArray<string> Verify()
    {
        ImmutableArray<string>.Builder differences = ImmutableArray.CreateBuilder<string>();
        code.Locked(() =>
        {
            using (sync.Enter())
            {
                foreach (Patch patch in pages.Values.SelectMany(page => page).Where(patch => patch.State == PatchState.InForce))
                {
                    if ((Difference(patch.Plan.Window, patch.Prepared.Replacement)
                        ?? (patch.Plan.Springboard is { } springboard
                            ? Difference(springboard.Address, SpringboardJump(springboard, patch.Implant.Address))
                            : null)) is { } difference)
                    {
                        differences.Add($"0x{patch.Plan.Window:x}: {difference}");
                    }
                }
            }
        });
        return differences.DrainToImmutable();
    }

    /// <inheritdoc/>
    public PatchDescription? Describe(PatchPlan plan)
    {
        ArgumentNullException.ThrowIfNull(plan);
        ImmutableArray<Instruction> window = WindowInstructions(plan);
        EncodedImplant? implant;
        using (sync.Enter())
        {
            implant = Find(plan)?.Implant;
        }

        implant ??= ImplantEncoder.Encode(window, templates, MachineLayout.ArenaBase, out _);
        return implant is null
            ? null
            : new PatchDescription(Disassemble(plan.Window, plan.Original.AsSpan()), Disassemble(implant.Address, implant.Code.AsSpan()));
    }

    /// <inheritdoc/>
    public void Scanned(ulong page)
    {
        using (sync.Enter())
        {
            List<Patch> candidates = PatchesOf(page);
            for (int index = candidates.Count - 1; index >= 0; index--)
            {
                Patch patch = candidates[index];
                if (patch.State is not (PatchState.Replayed or PatchState.Dirty))
                {
                    continue;
                }

                PatchState before = patch.State;
                if (TryEnforce(patch, out _))
                {
                    notices.Add(new PatchNotice(
                        patch.Plan,
                        before == PatchState.Replayed ? PatchNoticeKind.Replayed : PatchNoticeKind.Reinstated,
                        ""));
                }
                else if (before == PatchState.Dirty && !patch.ReportedOverwritten)
                {
                    // It may still come back: code patching goes through intermediate bytes.
                    patch.ReportedOverwritten = true;
                    notices.Add(new PatchNotice(patch.Plan, PatchNoticeKind.Overwritten, "the guest changed these bytes"));
                }
            }
        }
    }

    /// <inheritdoc/>
    public void Released(ulong page)
    {
        using (sync.Enter())
        {
            foreach (Patch patch in PatchesOf(page))
            {
                if (patch.State == PatchState.InForce)
                {
                    patch.State = PatchState.Dirty;
                    patch.ReportedOverwritten = false;
                    Map.Close(patch.Plan.Window, patch.End);
                    notices.Add(new PatchNotice(patch.Plan, PatchNoticeKind.Dirtied, "the guest wrote to the page"));
                }
            }
        }
    }

    /// <summary>The patches of a page: one in force at most at each address, and others for other bytes that the guest has there at times.</summary>
    private List<Patch> PatchesOf(ulong address)
    {
        ulong page = address & ~Paging.PageOffsetMask;
        if (!pages.TryGetValue(page, out List<Patch>? patches))
        {
            pages.Add(page, patches = []);
        }

        return patches;
    }

    private Patch? Find(PatchPlan plan) => PatchesOf(plan.Window).Find(patch => patch.Plan.IsSamePatch(plan));

    private Patch FindOrAdd(Patch patch)
    {
        if (Find(patch.Plan) is { } known)
        {
            return known;
        }

        PatchesOf(patch.Plan.Window).Add(patch);
        return patch;
    }

    private bool IsInTheWay(PatchPlan plan, out PreparationFailure? failure)
    {
        Patch? other = PatchesOf(plan.Window).Find(patch =>
            patch.State is PatchState.InForce or PatchState.Prepared && !patch.Plan.IsSamePatch(plan) && Overlaps(patch.Plan, plan));
        failure = other is null ? null : new PreparationFailure($"it overlaps the patch at 0x{other.Plan.Window:x}", IsFinal: false);
        return other is not null;
    }

    private void Withdraw(Patch patch)
    {
        Map.Close(patch.Plan.Window, patch.End);
        _ = code.TryRestore(patch.Plan.Window, patch.Plan.Original.AsSpan(), patch.SilentOffsets.AsSpan());
        if (patch.Plan.Springboard is { } springboard)
        {
            _ = code.TryRestore(springboard.Address, springboard.Original.AsSpan(), []);
        }
    }

    private bool IsReserved(ulong address)
    {
        using (sync.Enter())
        {
            return PatchesOf(address).Exists(patch =>
                patch.State == PatchState.InForce && Covers(patch.Plan, address, ImplantEncoder.JumpLength));
        }
    }

    private static bool Overlaps(PatchPlan one, PatchPlan other) =>
        Covers(one, other.Window, other.Original.Length)
        || (other.Springboard is { } springboard && Covers(one, springboard.Address, springboard.Original.Length));

    /// <summary>Whether a patch changes any of some bytes, in its window or in its springboard.</summary>
    private static bool Covers(PatchPlan plan, ulong address, int length) =>
        Overlap(plan.Window, plan.Original.Length, address, length)
        || (plan.Springboard is { } springboard && Overlap(springboard.Address, springboard.Original.Length, address, length));

    private static bool Overlap(ulong one, int length, ulong other, int otherLength) =>
        one < other + (ulong)otherLength && other < one + (ulong)length;

    /// <summary>Encodes an implant. That takes its time: not under the lock, which a scan needs, and a vCPU waits for scans.</summary>
    private Patch? Build(PatchPlan plan, out string reason)
    {
        ImmutableArray<Instruction> window = WindowInstructions(plan);
        int shortest = plan.Springboard is null ? ImplantEncoder.JumpLength : ImplantEncoder.ShortJumpLength;
        if (window.IsEmpty || plan.Original.Length < shortest)
        {
            reason = "the window is no code that a jump fits into";
            return null;
        }

        int[] boundaries = [.. window.Select(instruction => (int)(instruction.IP - plan.Window))];
        EncodedImplant? draft = ImplantEncoder.Encode(window, templates, MachineLayout.ArenaBase, out reason);
        if (draft is null)
        {
            return null;
        }

        if (!arena.TryReserve(
            (plan.Springboard?.Address ?? plan.Window) + ImplantEncoder.JumpLength,
            plan.Springboard is null ? DisplacementConstraint.For(boundaries) : default,
            draft.Code.Length,
            out ulong address))
        {
            reason = "no room in the arena where the jump may lead";
            return null;
        }

        EncodedImplant? implant = ImplantEncoder.Encode(window, templates, address, out reason);
        if (implant is null || implant.Code.Length > draft.Code.Length)
        {
            reason = implant is null ? reason : "the implant's length depends on its address";
            return null;
        }

        arena.Write(address, implant.Code.AsSpan());
        Map.Add(implant);
        int[] silent = [.. window.Where(instruction => SilentInstructions.IsSilent(instruction)).Select(instruction => (int)(instruction.IP - plan.Window))];
        return new Patch(
            new PreparedPatch(
                plan,
                address,
                plan.Springboard is { } springboard
                    ? ImplantEncoder.ShortJump(plan.Window, plan.Original.AsSpan(), springboard.Address)
                    : ImplantEncoder.Jump(plan.Window, plan.Original.AsSpan(), address)),
            implant,
            window[^1].NextIP,
            [.. silent]);
    }

    /// <summary>
    /// The instructions that run in the implant: what stands behind a return is padding, and the first byte of an instruction that is cut
    /// off stays where it is.
    /// </summary>
    internal static ImmutableArray<Instruction> WindowInstructions(PatchPlan plan)
    {
        ImmutableArray<Instruction> all = ImplantEncoder.Decode(plan.Window, plan.Original.AsSpan());
        for (int index = 0; index < all.Length; index++)
        {
            if (all[index].IsInvalid)
            {
                return all[..index];
            }

            if (all[index].FlowControl == FlowControl.Return)
            {
                return all[..(index + 1)];
            }
        }

        return all;
    }

    private bool TryEnforce(Patch patch, out string reason)
    {
        // Whatever was free when the patch was prepared: another one may have come back since.
        if (PatchesOf(patch.Plan.Window).Find(other => other.State == PatchState.InForce && Overlaps(other.Plan, patch.Plan)) is { } there)
        {
            reason = $"it overlaps the patch at 0x{there.Plan.Window:x}";
            return false;
        }

        Replacement result = Replacement.Done;
        if (patch.Plan.Springboard is { } springboard)
        {
            result = code.TryReplace(
                springboard.Address,
                springboard.Original.AsSpan(),
                SpringboardJump(springboard, patch.Implant.Address).AsSpan());
        }

        if (result == Replacement.Done)
        {
            result = code.TryReplace(patch.Plan.Window, patch.Plan.Original.AsSpan(), patch.Prepared.Replacement.AsSpan());
            if (result != Replacement.Done && patch.Plan.Springboard is { } unused)
            {
                _ = code.TryRestore(unused.Address, unused.Original.AsSpan(), []);
            }
        }

        reason = result switch
        {
            Replacement.Done => "",
            Replacement.NotScanned => "the guest is changing this page",
            _ => "the bytes changed",
        };
        if (result != Replacement.Done)
        {
            return false;
        }

        patch.State = PatchState.InForce;
        Map.Open(patch.Plan.Window, patch.Implant, patch.End);
        return true;
    }

    private static ImmutableArray<byte> SpringboardJump(Springboard springboard, ulong implant) =>
        ImplantEncoder.Jump(springboard.Address, springboard.Original.AsSpan(), implant);

    /// <summary>How a scanned page differs from what should be in it; null when it does not.</summary>
    private string? Difference(ulong address, ImmutableArray<byte> expected)
    {
        byte[] bytes = new byte[expected.Length];
        if (!code.TryReadRunning(address, bytes))
        {
            return "in force, but its page is not scanned";
        }

        return bytes.AsSpan().SequenceEqual(expected.AsSpan())
            ? null
            : $"{Convert.ToHexString(bytes)} instead of {Convert.ToHexString(expected.AsSpan())} at 0x{address:x}";
    }

    private static ImmutableArray<string> Disassemble(ulong address, ReadOnlySpan<byte> bytes) =>
    [
        .. ImplantEncoder.Decode(address, bytes).Select(instruction => $"{instruction.IP:x16}  {instruction}"),
    ];

    private enum PatchState
    {
        /// <summary>The implant is there; nothing is to lead to it for now.</summary>
        Spare,

        /// <summary>The implant is there, and something is about to lead to it.</summary>
        Prepared,

        /// <summary>Of an earlier run; its page did not run yet, or other bytes stand there still.</summary>
        Replayed,

        /// <summary>In the guest's code.</summary>
        InForce,

        /// <summary>The guest wrote to the page.</summary>
        Dirty,
    }

    private sealed class Patch(PreparedPatch prepared, EncodedImplant implant, ulong end, ImmutableArray<int> silentOffsets)
    {
        internal PreparedPatch Prepared => prepared;

        internal PatchPlan Plan => prepared.Plan;

        internal EncodedImplant Implant => implant;

        /// <summary>Address behind the last instruction that runs in the implant.</summary>
        internal ulong End => end;

        internal ImmutableArray<int> SilentOffsets => silentOffsets;

        internal PatchState State { get; set; }

        internal bool ReportedOverwritten { get; set; }
    }
}
