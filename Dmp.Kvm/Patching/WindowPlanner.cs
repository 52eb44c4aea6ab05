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
    private const int LongestWindow = 32;

    private string lastReason = "no five bytes that can be moved";

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
        int index = function.IndexOf(first[0]);
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

    private PatchPlan? Choose(ulong site, ImmutableArray<Instruction> function, int index, ulong end)
    {
        HashSet<ulong> targets = BranchTargets(function);
        for (int first = index; first >= 0 && index - first < ImplantEncoder.JumpLength; first--)
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

        return null;
    }

    private PatchPlan? TryWindow(ulong site, ImmutableArray<Instruction> function, int first, int index, ulong end)
    {
        ulong window = function[first].IP;
        int last = first;
        while (true)
        {
            Instruction instruction = function[last];
            ulong next = instruction.NextIP;
            bool enough = last >= index && next - window >= ImplantEncoder.JumpLength;
            if (!CanMove(function, last, isLast: true))
            {
                return null;
            }

            if (instruction.FlowControl == FlowControl.Return)
            {
                return last >= index ? PadReturn(site, window, function, first, last, end) : null;
            }

            bool holdsShadow = instruction.Mnemonic == Mnemonic.Sti && last + 1 < function.Length
                && function[last + 1].Mnemonic is Mnemonic.Hlt or Mnemonic.Mwait or Mnemonic.Iretq or Mnemonic.Sysexit;
            if (enough && !holdsShadow)
            {
                return Make(site, window, function, first, last, (int)(next - window));
            }

            last++;
            if (last >= function.Length || next >= end || next - window > LongestWindow)
            {
                lastReason = "the function ends before there are five bytes";
                return null;
            }
        }
    }

    /// <summary>Behind a return the compiler's traps and the linker's padding stand until the next function: they may go.</summary>
    private PatchPlan? PadReturn(
        ulong site, ulong window, ImmutableArray<Instruction> function, int first, int last, ulong end)
    {
        const byte Padding = 0xCC;
        ulong next = function[last].NextIP;
        Span<byte> behind = stackalloc byte[ImplantEncoder.JumpLength];
        int read = text.Read(next, behind);
        int length = (int)(next - window);
        for (int index = 0; length < ImplantEncoder.JumpLength; index++, length++)
        {
            if (index >= read || behind[index] != Padding || window + (ulong)length >= end)
            {
                lastReason = "the function ends before there are five bytes";
                return null;
            }
        }

        return Make(site, window, function, first, last, length);
    }

    private PatchPlan? Make(ulong site, ulong window, ImmutableArray<Instruction> function, int first, int last, int length)
    {
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
