using System.Collections.Immutable;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Patching;

/// <summary>
/// The patches of one machine: plans them, keeps their implants in the arena, and has them in the guest's code while the pages they
/// belong to run. A page that the guest writes to loses its patches with its scan, and gets them back with the next scan where the bytes
/// are still the same; no vCPU can execute the page in between, so that needs no quiescence.
/// </summary>
/// <remarks>Lock order: <see cref="CodePages"/>, then this, then the map's.</remarks>
internal sealed class PatchEngine : IPatchEngine, IPagePatches
{
    private readonly Lock sync = new();
    private readonly CodePages code;
    private readonly IGuestText text;
    private readonly TemplateSet templates;
    private readonly Arena arena;
    private readonly SortedDictionary<ulong, Patch> patches = [];
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
    public PreparedPatch? Prepare(PatchPlan plan, out string reason)
    {
        ArgumentNullException.ThrowIfNull(plan);
        lock (sync)
        {
            if (!MakeRoom(plan, out reason))
            {
                return null;
            }

            if (!patches.TryGetValue(plan.Window, out Patch? patch))
            {
                patch = Build(plan, out reason);
                if (patch is null)
                {
                    return null;
                }

                patches.Add(plan.Window, patch);
            }

            return patch.Prepared;
        }
    }

    /// <inheritdoc/>
    public bool TryApply(PreparedPatch patch, out string reason)
    {
        ArgumentNullException.ThrowIfNull(patch);
        string why = "";
        bool applied = false;
        code.Locked(() =>
        {
            lock (sync)
            {
                if (!patches.TryGetValue(patch.Plan.Window, out Patch? known) || known.Prepared != patch)
                {
                    why = "the patch is not prepared any more";
                    return;
                }

                applied = known.State == PatchState.InForce || TryEnforce(known, out why);
                if (!applied)
                {
                    _ = patches.Remove(patch.Plan.Window);
                }
            }
        });
        reason = why;
        return applied;
    }

    /// <inheritdoc/>
    public bool Revert(ulong window)
    {
        bool found = false;
        code.Locked(() =>
        {
            lock (sync)
            {
                if (patches.Remove(window, out Patch? patch))
                {
                    found = true;
                    if (patch.State == PatchState.InForce)
                    {
                        Map.Close(window, patch.End);
                        _ = code.TryRestore(window, patch.Plan.Original.AsSpan(), patch.SilentOffsets.AsSpan());
                        if (patch.Plan.Springboard is { } springboard)
                        {
                            _ = code.TryRestore(springboard.Address, springboard.Original.AsSpan(), []);
                        }
                    }
                }
            }
        });
        return found;
    }

    /// <inheritdoc/>
    public void Replay(IReadOnlyList<PatchPlan> plans)
    {
        ArgumentNullException.ThrowIfNull(plans);
        lock (sync)
        {
            foreach (PatchPlan plan in plans)
            {
                if (!MakeRoom(plan, out string reason) || patches.ContainsKey(plan.Window))
                {
                    continue;
                }

                if (Build(plan, out reason) is { } patch)
                {
                    patch.State = PatchState.Replayed;
                    patches.Add(plan.Window, patch);
                }
                else
                {
                    notices.Add(new PatchNotice(plan.Window, PatchNoticeKind.Mismatched, reason));
                }
            }
        }
    }

    /// <inheritdoc/>
    public void TakeNotices(List<PatchNotice> notices)
    {
        ArgumentNullException.ThrowIfNull(notices);
        notices.Clear();
        lock (sync)
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
            lock (sync)
            {
                foreach (Patch patch in patches.Values.Where(patch => patch.State == PatchState.InForce))
                {
                    byte[] bytes = new byte[patch.Plan.Original.Length];
                    if (!code.TryReadRunning(patch.Plan.Window, bytes))
                    {
                        differences.Add($"0x{patch.Plan.Window:x}: in force, but its page is not scanned");
                    }
                    else if (!bytes.AsSpan().SequenceEqual(patch.Prepared.Replacement.AsSpan()))
                    {
                        differences.Add($"0x{patch.Plan.Window:x}: {Convert.ToHexString(bytes)} instead of "
                            + Convert.ToHexString(patch.Prepared.Replacement.AsSpan()));
                    }
                }
            }
        });
        return differences.DrainToImmutable();
    }

    /// <inheritdoc/>
    public PatchDescription? Describe(ulong window)
    {
        lock (sync)
        {
            if (!patches.TryGetValue(window, out Patch? patch))
            {
                return null;
            }

            return new PatchDescription(
                Disassemble(patch.Plan.Window, patch.Plan.Original.AsSpan()),
                [
                    .. Disassemble(patch.Plan.Window, patch.Prepared.Replacement.AsSpan()[..Math.Min(ImplantEncoder.JumpLength, patch.Plan.Original.Length)]),
                    .. Disassemble(patch.Implant.Address, patch.Implant.Code.AsSpan()),
                ]);
        }
    }

    /// <inheritdoc/>
    public void Scanned(ulong page)
    {
        lock (sync)
        {
            foreach (Patch patch in patches.Values)
            {
                if ((patch.Plan.Window & ~Paging.PageOffsetMask) == page
                    && patch.State is PatchState.Replayed or PatchState.Dirty)
                {
                    PatchState before = patch.State;
                    if (TryEnforce(patch, out string why))
                    {
                        notices.Add(new PatchNotice(
                            patch.Plan.Window,
                            before == PatchState.Replayed ? PatchNoticeKind.Replayed : PatchNoticeKind.Reinstated,
                            ""));
                    }
                    else if (before == PatchState.Dirty)
                    {
                        // It may still come back: code patching goes through intermediate bytes.
                        notices.Add(new PatchNotice(patch.Plan.Window, PatchNoticeKind.Overwritten, why));
                    }
                }
            }
        }
    }

    /// <inheritdoc/>
    public void Released(ulong page)
    {
        lock (sync)
        {
            foreach (Patch patch in patches.Values)
            {
                if (patch.State == PatchState.InForce && (patch.Plan.Window & ~Paging.PageOffsetMask) == page)
                {
                    patch.State = PatchState.Dirty;
                    Map.Close(patch.Plan.Window, patch.End);
                    notices.Add(new PatchNotice(patch.Plan.Window, PatchNoticeKind.Dirtied, "the guest wrote to the page"));
                }
            }
        }
    }

    /// <summary>Patches that are not in the guest's code give way to a new plan; those that are do not.</summary>
    private bool MakeRoom(PatchPlan plan, out string reason)
    {
        List<ulong> obsolete = [];
        foreach (Patch other in patches.Values)
        {
            if (!Overlaps(other.Plan, plan) || other.Plan == plan)
            {
                continue;
            }

            if (other.State is PatchState.InForce or PatchState.Prepared)
            {
                reason = $"it overlaps the patch at 0x{other.Plan.Window:x}";
                return false;
            }

            obsolete.Add(other.Plan.Window);
        }

        obsolete.ForEach(window => patches.Remove(window));
        reason = "";
        return true;
    }

    private bool IsReserved(ulong address)
    {
        lock (sync)
        {
            return patches.Values.Any(patch => patch.Plan.Springboard is { } springboard
                && Overlap(springboard.Address, ImplantEncoder.JumpLength, address, ImplantEncoder.JumpLength));
        }
    }

    private static bool Overlaps(PatchPlan one, PatchPlan other) =>
        Overlap(one.Window, one.Original.Length, other.Window, other.Original.Length)
        || (one.Springboard is { } mine && other.Springboard is { } its
            && Overlap(mine.Address, mine.Original.Length, its.Address, its.Original.Length));

    private static bool Overlap(ulong one, int length, ulong other, int otherLength) =>
        one < other + (ulong)otherLength && other < one + (ulong)length;

    private Patch? Build(PatchPlan plan, out string reason)
    {
        ImmutableArray<Instruction> window = WindowInstructions(plan);
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
                    ? ImplantEncoder.ShortJump(plan.Window, plan.Original.Length, springboard.Address)
                    : ImplantEncoder.Jump(plan.Window, plan.Original.Length, address)),
            implant,
            window[^1].NextIP,
            [.. silent]);
    }

    /// <summary>
    /// The instructions that run in the implant: what stands behind a return is padding, and the first byte of an instruction that is cut
    /// off stays where it is.
    /// </summary>
    private static ImmutableArray<Instruction> WindowInstructions(PatchPlan plan)
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
        Replacement result = Replacement.Done;
        if (patch.Plan.Springboard is { } springboard)
        {
            result = code.TryReplace(
                springboard.Address,
                springboard.Original.AsSpan(),
                ImplantEncoder.Jump(springboard.Address, springboard.Original.Length, patch.Implant.Address).AsSpan());
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

    private static ImmutableArray<string> Disassemble(ulong address, ReadOnlySpan<byte> bytes) =>
    [
        .. ImplantEncoder.Decode(address, bytes).Select(instruction => $"{instruction.IP:x16}  {instruction}"),
    ];

    private enum PatchState
    {
        /// <summary>The implant is there; nothing leads to it.</summary>
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
    }
}
