using System.Collections.Immutable;
using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Patching;

/// <summary>What the planner knows about the code around a site.</summary>
internal interface IGuestText
{
    /// <summary>Reads code as the guest wrote it.</summary>
    /// <returns>Bytes read: fewer than asked for where it is not known what lies there.</returns>
    int Read(ulong address, Span<byte> destination);

    /// <summary>Where the function of an address begins and the next symbol after it; null when no symbol is known.</summary>
    (ulong Start, ulong End)? Function(ulong address);

    /// <summary>
    /// Whether the guest may later compare the bytes of an instruction with what it expects there: jump labels, static calls. Null when
    /// it cannot be known.
    /// </summary>
    bool? IsComparedLater(ulong address);

    /// <summary>Whether a springboard or a window lies here already.</summary>
    bool IsReserved(ulong address);
}

/// <summary>
/// Chooses the window of a patch: whole instructions around a site, at least as long as a jump, that can all run elsewhere. Pure; one
/// object for one question.
/// </summary>
internal sealed class WindowPlanner(IGuestText text, TemplateSet templates)
{
    private const int DecoderBits = 64;
    private const int LongestInstruction = 15;
    private const int LongestFunction = 0x4000;

    /// <summary>More than this would only cost arena memory.</summary>
    private const int LongestWindow = 48;

    /// <summary>Bytes between two sensitive instructions that still make one window.</summary>
    private const int ClusterGap = 16;

    private string lastReason = "no five bytes that can be moved";
    private ulong paddingOf;
    private ulong paddingStart;

    /// <summary>Plans a patch for a site.</summary>
    /// <param name="site">Address of the sensitive instruction.</param>
    internal PlanResult Plan(ulong site)
    {
        Span<byte> bytes = stackalloc byte[LongestInstruction];
        int known = text.Read(site, bytes);
        ImmutableArray<Instruction> first = Decode(site, bytes[..known], site + 1);
        if (first.IsEmpty)
        {
            return new PlanResult.Refused("the code cannot be read", []);
        }

        ImmutableArray<byte> original = [.. bytes[..first[0].Length]];
        if (templates.Find(first[0]) is null)
        {
            return new PlanResult.Refused($"no template for {first[0]}", original);
        }

        (ulong start, ulong end) = text.Function(site) ?? (site, ulong.MaxValue);
        ImmutableArray<Instruction> function = ReadFunction(ref start, end, site);
        int index = IndexOf(function, site);
        if (index < 0)
        {
            // The symbol's code does not lead to the site: plan from the site on alone.
            start = site;
            function = ReadFunction(ref start, end, site);
            index = 0;
        }

        return Choose(site, function, index, end) is { } window
            ? new PlanResult.Planned(window)
            : new PlanResult.Refused(lastReason, original);
    }

    // Instructions count as equal wherever they stand, so this goes by the address.
    private static int IndexOf(ImmutableArray<Instruction> function, ulong address)
    {
        for (int index = 0; index < function.Length; index++)
        {
            if (function[index].IP == address)
            {
                return index;
            }
        }

        return -1;
    }

    private PatchPlan? Choose(ulong site, ImmutableArray<Instruction> function, int index, ulong end)
    {
        HashSet<ulong> targets = BranchTargets(function);
        (int first, int last) = Cluster(function, index);
        if (last > first && TryWindow(site, function, first, last, end) is { } all && !IsTargeted(all, targets))
        {
            return all;
        }

        for (first = index; first >= 0 && index - first < ImplantEncoder.JumpLength; first--)
        {
            if (first < index && !CanMove(function, first, isLast: false))
            {
                break;
            }

            if (TryWindow(site, function, first, index, end) is not { } plan)
            {
                continue;
            }

            // A missed one does no harm (see DisplacementConstraint), but costs an exit each time.
            if (!IsTargeted(plan, targets))
            {
                return plan;
            }

            lastReason = "a branch leads behind its first byte";
        }

        return WithSpringboard(site, function, index, targets);
    }

    /// <summary>
    /// Sensitive instructions stand close together: saving flags and disabling interrupts, the pieces of a return frame. One window for
    /// all of them costs one jump, and none of them is in the way of another.
    /// </summary>
    private (int First, int Last) Cluster(ImmutableArray<Instruction> function, int index)
    {
        int first = index;
        for (int at = index - 1; at >= 0 && function[first].IP - function[at].IP <= ClusterGap && CanMove(function, at, isLast: false); at--)
        {
            if (function[index].NextIP - function[at].IP > LongestWindow || function[at].Mnemonic is Mnemonic.Iretq)
            {
                break;
            }

            first = templates.Find(function[at]) is not null ? at : first;
        }

        int last = index;
        for (int at = index + 1; at < function.Length && !IsEnd(function[at - 1])
            && function[at].IP - function[last].IP <= ClusterGap && CanMove(function, at, isLast: true); at++)
        {
            if (function[at].NextIP - function[first].IP > LongestWindow)
            {
                break;
            }

            bool holdsShadow = function[at].Mnemonic == Mnemonic.Hlt && function[at - 1].Mnemonic == Mnemonic.Sti;
            last = holdsShadow || templates.Find(function[at]) is not null ? at : last;
        }

        return (first, last);
    }

    private static bool IsEnd(in Instruction instruction) => instruction.FlowControl == FlowControl.Return;

    private PatchPlan? TryWindow(ulong site, ImmutableArray<Instruction> function, int first, int index, ulong end)
    {
        ulong window = function[first].IP;
        for (int last = first; last < function.Length && function[last].NextIP - window <= LongestWindow; last++)
        {
            if (!CanMove(function, last, isLast: true))
            {
                return null;
            }

            bool enough = function[last].NextIP - window >= ImplantEncoder.JumpLength || IsEnd(function[last]);
            if (last >= index && enough && !HoldsShadow(function, last))
            {
                return Make(site, function, first, last, end);
            }

            if (IsEnd(function[last]))
            {
                return null;
            }
        }

        lastReason = "the function ends before there are five bytes";
        return null;
    }

    /// <summary>STI with what relies on its shadow behind it: the two stay together.</summary>
    private static bool HoldsShadow(ImmutableArray<Instruction> function, int index) =>
        function[index].Mnemonic == Mnemonic.Sti && index + 1 < function.Length
        && function[index + 1].Mnemonic is Mnemonic.Hlt or Mnemonic.Mwait or Mnemonic.Iretq or Mnemonic.Sysexit;

    /// <summary>
    /// Where five bytes do not fit: a short jump, of two bytes, to a jump in the padding before or behind the function. If not even two
    /// bytes may change, the byte behind a one-byte instruction may happen to be a displacement that leads to such padding.
    /// </summary>
    private PatchPlan? WithSpringboard(ulong site, ImmutableArray<Instruction> function, int index, HashSet<ulong> targets)
    {
        int length = 0;
        int last = index;
        for (; last < function.Length && length < ImplantEncoder.ShortJumpLength && CanMove(function, last, isLast: true); last++)
        {
            length += function[last].Length;
            if (IsEnd(function[last]))
            {
                last++;
                break;
            }
        }

        if (length == 0 || HoldsShadow(function, last - 1))
        {
            return null;
        }

        sbyte? displacement = null;
        if (length < ImplantEncoder.ShortJumpLength)
        {
            Span<byte> behind = stackalloc byte[1];
            if (length != 1 || text.Read(site + 1, behind) != 1)
            {
                return null;
            }

            // What runs there is not the guest's byte but a trap, which no patch may take away.
            if (last < function.Length && CodeScan.SilentInstructions.IsSilent(function[last]))
            {
                return null;
            }

            displacement = (sbyte)behind[0];
        }

        bool faulting = length >= ImplantEncoder.ShortJumpLength && function[index].Length == 1;
        if (FindPadding(site, displacement, faulting) is not { } springboard)
        {
            return null;
        }

        // The byte behind is a part of the jump: the patch stands and falls with it, though it does not change.
        PatchPlan? plan = MakePlan(site, function, index, last - 1, Math.Max(length, ImplantEncoder.ShortJumpLength));
        if (plan is null || IsTargeted(plan, targets))
        {
            return null;
        }

        return ((plan.Window ^ springboard.Address) & ~Paging.PageOffsetMask) == 0 ? plan with { Springboard = springboard } : null;
    }

    /// <summary>Five bytes of padding that a short jump from the site reaches.</summary>
    /// <param name="site">Where the jump stands.</param>
    /// <param name="wanted">The only displacement that will do, or null.</param>
    /// <param name="faulting">Whether the displacement must be a faulting instruction.</param>
    private Springboard? FindPadding(ulong site, sbyte? wanted, bool faulting)
    {
        ulong origin = site + ImplantEncoder.ShortJumpLength;
        byte[] bytes = new byte[ImplantEncoder.JumpLength];
        for (int displacement = sbyte.MaxValue; displacement >= sbyte.MinValue; displacement--)
        {
            if ((wanted is { } only && only != displacement)
                || (faulting && !DisplacementConstraint.FaultingBytes.Contains((byte)displacement)))
            {
                continue;
            }

            ulong address = origin + (ulong)(long)displacement;
            if (IsPadding(address) && text.Read(address, bytes) == bytes.Length)
            {
                return new Springboard(address, [.. bytes]);
            }
        }

        lastReason = "no five bytes that can be moved, and no padding in reach";
        return null;
    }

    /// <summary>Whether a jump fits between the last instruction of a function and the next symbol.</summary>
    private bool IsPadding(ulong address)
    {
        if (text.Function(address) is not { } range || address + ImplantEncoder.JumpLength > range.End
            || ((address ^ (address + ImplantEncoder.JumpLength - 1)) & ~Paging.PageOffsetMask) != 0
            || text.IsReserved(address))
        {
            return false;
        }

        if (range.Start != paddingOf)
        {
            ulong start = range.Start;
            ImmutableArray<Instruction> function = ReadFunction(ref start, range.End, range.Start);
            paddingOf = range.Start;
            paddingStart = range.End;
            HashSet<ulong> targets = BranchTargets(function);

            // Of a function that is too long, or cannot all be read, the rest is code as well.
            bool isWhole = !function.IsEmpty && function[^1].NextIP == range.End;
            for (int index = isWhole ? function.Length - 1 : 0; index > 0; index--)
            {
                bool idle = function[index].Mnemonic is Mnemonic.Nop or Mnemonic.Int3 && !targets.Contains(function[index].IP);
                if (!idle)
                {
                    // What runs into the padding would run into the jump.
                    bool leaves = function[index].FlowControl is FlowControl.Return or FlowControl.UnconditionalBranch
                        or FlowControl.IndirectBranch or FlowControl.Exception;
                    paddingStart = leaves ? function[index].NextIP : range.End;
                    break;
                }
            }
        }

        return address >= paddingStart;
    }

    /// <summary>Behind a return the compiler's traps and the linker's padding stand until the next function: they may go.</summary>
    private bool TryPadReturn(ImmutableArray<Instruction> function, int last, ulong end, ref int length)
    {
        for (int index = last + 1; length < ImplantEncoder.JumpLength; index++)
        {
            bool isPadding = index < function.Length && function[index].IP < end
                && (function[index].Mnemonic == Mnemonic.Int3
                    || (function[index].Mnemonic == Mnemonic.Nop
                        && !(IsPatchableNop(function[index]) && text.IsComparedLater(function[index].IP) != false)));
            if (!isPadding)
            {
                lastReason = "the function ends before there are five bytes";
                return false;
            }

            length += function[index].Length;
        }

        return true;
    }

    private PatchPlan? Make(ulong site, ImmutableArray<Instruction> function, int first, int last, ulong end)
    {
        int length = (int)(function[last].NextIP - function[first].IP);
        if (length < ImplantEncoder.JumpLength && !(IsEnd(function[last]) && TryPadReturn(function, last, end, ref length)))
        {
            return null;
        }

        return HoldsShadow(function, last) ? null : MakePlan(site, function, first, last, length);
    }

    private PatchPlan? MakePlan(ulong site, ImmutableArray<Instruction> function, int first, int last, int length)
    {
        ulong window = function[first].IP;
        if (((window ^ (window + (ulong)length - 1)) & ~Paging.PageOffsetMask) != 0)
        {
            lastReason = "the window crosses a page";
            return null;
        }

        byte[] original = new byte[length];
        if (text.Read(window, original) != length)
        {
            lastReason = "the code cannot be read";
            return null;
        }

        ImmutableArray<TemplateUse>.Builder uses = ImmutableArray.CreateBuilder<TemplateUse>();
        for (int index = first; index <= last; index++)
        {
            if (templates.Find(function[index]) is { } template)
            {
                uses.Add(TemplateSet.Use(template));
            }
        }

        return new PatchPlan(site, window, [.. original], uses.DrainToImmutable());
    }

    /// <summary>Whether an instruction can run in the implant instead, and its bytes are nobody's business later.</summary>
    private bool CanMove(ImmutableArray<Instruction> function, int index, bool isLast)
    {
        Instruction instruction = function[index];
        if (instruction.IsInvalid)
        {
            lastReason = "the code behind it is none";
            return false;
        }

        if (templates.Find(instruction) is not null)
        {
            return true;
        }

        bool moves = instruction.FlowControl switch
        {
            FlowControl.Next => true,
            FlowControl.Return => isLast && instruction.Code == Code.Retnq,
            _ => false,
        };

        // The stack segment's load holds interrupts off like STI; prefixes that fault belong where they are.
        if (!moves || instruction.Op0Register == Register.SS || instruction.Mnemonic is Mnemonic.Iretq or Mnemonic.Sysret or Mnemonic.Sysretq)
        {
            lastReason = $"{instruction.Mnemonic.ToString().ToLowerInvariant()} cannot be moved";
            return false;
        }

        if (IsPatchableNop(instruction) && text.IsComparedLater(instruction.IP) != false)
        {
            lastReason = "the guest may patch the nop behind it";
            return false;
        }

        return true;
    }

    // The nops of jump labels, static calls and function tracing (Linux: x86_nops[5], x86_nops[2]).
    private static bool IsPatchableNop(in Instruction instruction) =>
        instruction.Mnemonic == Mnemonic.Nop && instruction.Length is 2 or 5;

    private static bool IsTargeted(PatchPlan plan, HashSet<ulong> targets)
    {
        for (ulong at = plan.Window + 1; at < plan.End; at++)
        {
            if (targets.Contains(at))
            {
                return true;
            }
        }

        return false;
    }

    private static HashSet<ulong> BranchTargets(ImmutableArray<Instruction> function)
    {
        HashSet<ulong> targets = [];
        foreach (Instruction instruction in function)
        {
            if (instruction.Op0Kind is OpKind.NearBranch64)
            {
                _ = targets.Add(instruction.NearBranchTarget);
            }
        }

        return targets;
    }

    private ImmutableArray<Instruction> ReadFunction(ref ulong start, ulong end, ulong site)
    {
        if (site - start > LongestFunction)
        {
            start = site;
        }

        byte[] bytes = new byte[(int)Math.Min(end - start, LongestFunction)];
        int read = text.Read(start, bytes);
        return Decode(start, bytes.AsSpan(0, read), ulong.MaxValue);
    }

    private static ImmutableArray<Instruction> Decode(ulong address, ReadOnlySpan<byte> bytes, ulong limit)
    {
        Decoder decoder = Decoder.Create(DecoderBits, new ByteArrayCodeReader(bytes.ToArray()), address);
        ulong end = Math.Min(limit, address + (ulong)bytes.Length);
        ImmutableArray<Instruction>.Builder instructions = ImmutableArray.CreateBuilder<Instruction>();
        while (decoder.IP < end)
        {
            decoder.Decode(out Instruction instruction);
            if (decoder.LastError == DecoderError.NoMoreBytes)
            {
                break;
            }

            instructions.Add(instruction);
        }

        return instructions.DrainToImmutable();
    }
}
