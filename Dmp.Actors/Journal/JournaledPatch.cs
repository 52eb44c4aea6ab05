using System.Collections.Immutable;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Journal;

/// <summary>A patch as the journal keeps it: it means the same in every run of the same kernel, wherever that was
/// loaded.</summary>
/// <param name="Offset">Offset of the window from the kernel's base, in bytes; the patch's key.</param>
/// <param name="Original">The guest's bytes in the window.</param>
/// <param name="SiteOffset">Offset of the hot instruction from the kernel's base, in bytes; it lies in the window.</param>
/// <param name="Templates">The templates of the window's sensitive instructions, in their order.</param>
/// <param name="Springboard">The padding that the window's jump leads to, its address an offset too; null when it needs none.</param>
public sealed record JournaledPatch(
    long Offset, ImmutableArray<byte> Original, long SiteOffset, ImmutableArray<TemplateUse> Templates, Springboard? Springboard = null)
{
    /// <summary>The site's name as symbol+offset, for people: says nothing that a patch is known by. Empty when not known.</summary>
    public string Symbol { get; init; } = string.Empty;

    /// <summary>Offset of the first byte behind the window.</summary>
    public long End => Offset + Original.Length;

    /// <summary>A plan as the journal keeps it.</summary>
    /// <param name="plan">The plan.</param>
    /// <param name="kernelBase">Where the kernel's code begins in this run.</param>
    public static JournaledPatch Of(PatchPlan plan, ulong kernelBase)
    {
        ArgumentNullException.ThrowIfNull(plan);
        return new JournaledPatch(
            unchecked((long)(plan.Window - kernelBase)), plan.Original, unchecked((long)(plan.Site - kernelBase)), plan.Templates,
            plan.Springboard is { } board ? board with { Address = unchecked(board.Address - kernelBase) } : null);
    }

    /// <summary>The plan that was journaled.</summary>
    /// <param name="kernelBase">Where the kernel's code begins in this run.</param>
    public PatchPlan ToPlan(ulong kernelBase) => new(
        unchecked(kernelBase + (ulong)SiteOffset), unchecked(kernelBase + (ulong)Offset), Original, Templates,
        Springboard is { } board ? board with { Address = unchecked(board.Address + kernelBase) } : null);

    /// <summary>Whether an instruction's offset lies in the window.</summary>
    /// <param name="offset">Offset from the kernel's base, in bytes.</param>
    public bool Covers(long offset) => offset >= Offset && offset < End;

    /// <summary>Whether another patch's window overlaps this one's and was made for other bytes: the guest has both at different times.</summary>
    /// <param name="other">The other patch.</param>
    public bool IsVariantOf(JournaledPatch other)
    {
        ArgumentNullException.ThrowIfNull(other);
        for (long offset = Math.Max(Offset, other.Offset); offset < Math.Min(End, other.End); offset++)
        {
            if (Original[(int)(offset - Offset)] != other.Original[(int)(offset - other.Offset)])
            {
                return true;
            }
        }

        return false;
    }

    /// <inheritdoc/>
    public bool Equals(JournaledPatch? other) => other is not null && Offset == other.Offset && SiteOffset == other.SiteOffset
        && Springboard == other.Springboard
        && Original.AsSpan().SequenceEqual(other.Original.AsSpan())
        && Templates.AsSpan().SequenceEqual(other.Templates.AsSpan());

    /// <inheritdoc/>
    public override int GetHashCode() => HashCode.Combine(Offset, SiteOffset, Original.Length, Templates.Length);
}
