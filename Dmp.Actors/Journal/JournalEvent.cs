using System.Collections.Immutable;
using Dmp.Kvm.Cpu;

namespace Dmp.Actors.Journal;

/// <summary>What the journal of one kernel consists of. All offsets are from the kernel's base, in bytes.</summary>
public abstract record JournalEvent
{
    private JournalEvent()
    {
    }

    /// <summary>An event that stands for itself, outside of any transaction.</summary>
    public abstract record Fact : JournalEvent
    {
        private protected Fact()
        {
        }
    }

    /// <summary>Patches are about to be applied. Stored before the first byte of guest code changes.</summary>
    /// <param name="Transaction">Number of the transaction; counts up in the stream of one kernel.</param>
    /// <param name="Patches">What is to be applied.</param>
    public sealed record PatchIntended(long Transaction, ImmutableArray<JournaledPatch> Patches) : JournalEvent
    {
        /// <summary>Where the kernel lay in that run, for people; 0 when not known.</summary>
        public ulong KernelBase { get; init; }

        /// <inheritdoc/>
        public bool Equals(PatchIntended? other) => other is not null && Transaction == other.Transaction
            && KernelBase == other.KernelBase && Patches.AsSpan().SequenceEqual(other.Patches.AsSpan());

        /// <inheritdoc/>
        public override int GetHashCode() => HashCode.Combine(Transaction, Patches.Length);
    }

    /// <summary>Patches of a transaction are in the guest's code.</summary>
    /// <param name="Transaction">The transaction.</param>
    /// <param name="Offsets">Which patches of it.</param>
    public sealed record PatchApplied(long Transaction, ImmutableArray<long> Offsets) : JournalEvent
    {
        /// <inheritdoc/>
        public bool Equals(PatchApplied? other) => other is not null && Transaction == other.Transaction
            && Offsets.AsSpan().SequenceEqual(other.Offsets.AsSpan());

        /// <inheritdoc/>
        public override int GetHashCode() => HashCode.Combine(Transaction, Offsets.Length);
    }

    /// <summary>Patches of a transaction were not applied; the guest's code is as it was.</summary>
    /// <param name="Transaction">The transaction.</param>
    /// <param name="Offsets">Which patches of it.</param>
    /// <param name="Reason">Why not.</param>
    public sealed record PatchAborted(long Transaction, ImmutableArray<long> Offsets, string Reason) : JournalEvent
    {
        /// <inheritdoc/>
        public bool Equals(PatchAborted? other) => other is not null && Transaction == other.Transaction && Reason == other.Reason
            && Offsets.AsSpan().SequenceEqual(other.Offsets.AsSpan());

        /// <inheritdoc/>
        public override int GetHashCode() => HashCode.Combine(Transaction, Offsets.Length, Reason);
    }

    /// <summary>A site cannot be patched.</summary>
    /// <param name="SiteOffset">The site.</param>
    /// <param name="Bytes">Its instruction's bytes; empty when they cannot be read.</param>
    /// <param name="Reason">Why not.</param>
    /// <param name="Kind">What its exits are.</param>
    public sealed record PatchRefused(long SiteOffset, ImmutableArray<byte> Bytes, string Reason, ExitKind Kind) : Fact
    {
        /// <summary>The site's name as symbol+offset, for people; empty when not known.</summary>
        public string Symbol { get; init; } = string.Empty;

        /// <summary>Where the kernel lay in that run, for people; 0 when not known.</summary>
        public ulong KernelBase { get; init; }

        /// <inheritdoc/>
        public bool Equals(PatchRefused? other) => other is not null && SiteOffset == other.SiteOffset && Reason == other.Reason
            && Symbol == other.Symbol && KernelBase == other.KernelBase && Kind == other.Kind && Bytes.AsSpan().SequenceEqual(other.Bytes.AsSpan());

        /// <inheritdoc/>
        public override int GetHashCode() => HashCode.Combine(SiteOffset, Bytes.Length, Reason, Kind);
    }

    /// <summary>A patch was taken back; the original bytes are in place.</summary>
    /// <param name="Offset">The patch.</param>
    /// <param name="Reason">Why.</param>
    public sealed record PatchReverted(long Offset, string Reason) : Fact;

    /// <summary>Replay found other bytes than the original ones: the patch was not applied.</summary>
    /// <param name="Offset">The patch.</param>
    /// <param name="Reason">What was found.</param>
    public sealed record PatchMismatched(long Offset, string Reason) : Fact;

    /// <summary>The guest overwrote the site: the patch is gone for good.</summary>
    /// <param name="Offset">The patch.</param>
    /// <param name="Reason">Why.</param>
    public sealed record SiteRetired(long Offset, string Reason) : Fact;

    /// <summary>What the site cost in one run, before it was patched: a rate to estimate from what the patch saves.</summary>
    /// <param name="Offset">The patch.</param>
    /// <param name="Exits">Exits counted at the site.</param>
    /// <param name="Period">Time in which they were counted; whole milliseconds are kept.</param>
    public sealed record PatchObserved(long Offset, long Exits, TimeSpan Period) : Fact;

    /// <summary>The user switched a site off: no window that covers it is patched.</summary>
    /// <param name="Offset">The site, or any instruction in its window.</param>
    public sealed record SiteDisabled(long Offset) : Fact;

    /// <summary>The user switched a site on again.</summary>
    /// <param name="Offset">The same offset.</param>
    public sealed record SiteEnabled(long Offset) : Fact;
}
