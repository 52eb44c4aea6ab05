using System.Collections.Immutable;

namespace Dmp.Actors.Journal;

/// <summary>An event of the journal, and when it was stored.</summary>
/// <param name="At">When, in UTC.</param>
/// <param name="Event">What.</param>
public sealed record RecordedEvent(DateTime At, JournalEvent Event);

/// <summary>Everything that the journal has of one kernel.</summary>
/// <param name="Events">All events in their order.</param>
/// <param name="State">What they add up to, what is still open resolved.</param>
public sealed record KernelHistory(ImmutableArray<RecordedEvent> Events, JournalState State)
{
    /// <summary>What happened to a site: its patches, whatever window they had, and the user's switches in them.</summary>
    /// <param name="siteOffset">Offset of the site from the kernel's base, in bytes.</param>
    public ImmutableArray<RecordedEvent> Of(long siteOffset)
    {
        var mine = ImmutableArray.CreateBuilder<RecordedEvent>();

        // By the offset of a window: whether the last patch that began there was the site's.
        Dictionary<long, JournaledPatch> windows = [];
        foreach (RecordedEvent recorded in Events)
        {
            if (recorded.Event is JournalEvent.PatchIntended intended)
            {
                foreach (JournaledPatch patch in intended.Patches)
                {
                    windows[patch.Offset] = patch;
                }
            }

            if (Concerns(recorded.Event, siteOffset, windows))
            {
                mine.Add(recorded);
            }
        }

        return mine.ToImmutable();
    }

    private static bool Concerns(JournalEvent happened, long site, Dictionary<long, JournaledPatch> windows)
    {
        return happened switch
        {
            JournalEvent.PatchIntended intended => intended.Patches.Any(patch => patch.SiteOffset == site),
            JournalEvent.PatchApplied applied => applied.Offsets.Any(IsMine),
            JournalEvent.PatchAborted aborted => aborted.Offsets.Any(IsMine),
            JournalEvent.PatchRefused refused => refused.SiteOffset == site,
            JournalEvent.PatchReverted reverted => IsMine(reverted.Offset),
            JournalEvent.PatchMismatched mismatched => IsMine(mismatched.Offset),
            JournalEvent.SiteRetired retired => IsMine(retired.Offset),
            JournalEvent.PatchObserved observed => IsMine(observed.Offset),
            JournalEvent.SiteDisabled disabled => IsSwitch(disabled.Offset),
            JournalEvent.SiteEnabled enabled => IsSwitch(enabled.Offset),
            _ => false,
        };

        bool IsMine(long window) => windows.TryGetValue(window, out JournaledPatch? patch) && patch.SiteOffset == site;

        bool IsSwitch(long offset) =>
            offset == site || windows.Values.Any(patch => patch.SiteOffset == site && patch.Covers(offset));
    }
}
