using System.Collections.Immutable;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Patching;
using Google.Protobuf;

namespace Dmp.Actors.Journal;

/// <summary>Events and snapshots to bytes and back. What an older version did not write reads as nothing; what a newer one
/// added is passed over.</summary>
internal static class JournalCodec
{
    private const string Intended = "in";
    private const string Applied = "ap";
    private const string Aborted = "ab";
    private const string Refused = "rf";
    private const string Reverted = "rv";
    private const string Mismatched = "mm";
    private const string Retired = "rt";
    private const string Observed = "ob";
    private const string Disabled = "di";
    private const string Enabled = "en";
    private const string Snapshot = "ss";

    /// <summary>The stable name of what an object is.</summary>
    public static string Manifest(object value) => value switch
    {
        JournalEvent.PatchIntended => Intended,
        JournalEvent.PatchApplied => Applied,
        JournalEvent.PatchAborted => Aborted,
        JournalEvent.PatchRefused => Refused,
        JournalEvent.PatchReverted => Reverted,
        JournalEvent.PatchMismatched => Mismatched,
        JournalEvent.SiteRetired => Retired,
        JournalEvent.PatchObserved => Observed,
        JournalEvent.SiteDisabled => Disabled,
        JournalEvent.SiteEnabled => Enabled,
        JournalState => Snapshot,
        _ => throw new JournalFormatException($"{value.GetType()} is nothing that the patch journal keeps"),
    };

    public static byte[] Encode(object value) => Message(value).ToByteArray();

    public static object Decode(byte[] bytes, string manifest)
    {
        try
        {
            return manifest switch
            {
                Intended => Read(Wire.PatchIntended.Parser.ParseFrom(bytes)),
                Applied => Read(Wire.PatchApplied.Parser.ParseFrom(bytes)),
                Aborted => Read(Wire.PatchAborted.Parser.ParseFrom(bytes)),
                Refused => Read(Wire.PatchRefused.Parser.ParseFrom(bytes)),
                Reverted => ReadEnded(bytes, (offset, reason) => new JournalEvent.PatchReverted(offset, reason)),
                Mismatched => ReadEnded(bytes, (offset, reason) => new JournalEvent.PatchMismatched(offset, reason)),
                Retired => ReadEnded(bytes, (offset, reason) => new JournalEvent.SiteRetired(offset, reason)),
                Observed => Read(Wire.PatchObserved.Parser.ParseFrom(bytes)),
                Disabled => new JournalEvent.SiteDisabled(Wire.SiteSwitched.Parser.ParseFrom(bytes).Offset),
                Enabled => new JournalEvent.SiteEnabled(Wire.SiteSwitched.Parser.ParseFrom(bytes).Offset),
                Snapshot => Read(Wire.Snapshot.Parser.ParseFrom(bytes)),
                _ => throw new JournalFormatException(
                    $"it holds a record of the kind \"{manifest}\", which this version of dmp does not know"),
            };
        }
        catch (InvalidProtocolBufferException damaged)
        {
            throw new JournalFormatException($"a record of the kind \"{manifest}\" is damaged", damaged);
        }
    }

    private static IMessage Message(object value) => value switch
    {
        JournalEvent.PatchIntended intended => new Wire.PatchIntended
        {
            Transaction = intended.Transaction,
            Patches = { intended.Patches.Select(Write) },
            KernelBase = intended.KernelBase,
        },
        JournalEvent.PatchApplied applied => new Wire.PatchApplied
        {
            Transaction = applied.Transaction,
            Offsets = { applied.Offsets },
        },
        JournalEvent.PatchAborted aborted => new Wire.PatchAborted
        {
            Transaction = aborted.Transaction,
            Offsets = { aborted.Offsets },
            Reason = aborted.Reason,
        },
        JournalEvent.PatchRefused refused => Write(refused),
        JournalEvent.PatchReverted reverted => new Wire.PatchEnded { Offset = reverted.Offset, Reason = reverted.Reason },
        JournalEvent.PatchMismatched mismatched => new Wire.PatchEnded { Offset = mismatched.Offset, Reason = mismatched.Reason },
        JournalEvent.SiteRetired retired => new Wire.PatchEnded { Offset = retired.Offset, Reason = retired.Reason },
        JournalEvent.PatchObserved observed => new Wire.PatchObserved
        {
            Offset = observed.Offset,
            Exits = observed.Exits,
            Milliseconds = (long)observed.Period.TotalMilliseconds,
        },
        JournalEvent.SiteDisabled disabled => new Wire.SiteSwitched { Offset = disabled.Offset },
        JournalEvent.SiteEnabled enabled => new Wire.SiteSwitched { Offset = enabled.Offset },
        JournalState state => new Wire.Snapshot
        {
            LastTransaction = state.LastTransaction,
            Entries = { state.Entries.Values.Select(Write) },
            Variants = { state.Variants.Select(Write) },
            Refusals = { state.Refusals.Values.Select(Write) },
            Disabled = { state.Disabled },
            KernelBase = state.KernelBase,
        },
        _ => throw new JournalFormatException($"{value.GetType()} is nothing that the patch journal keeps"),
    };

    private static Wire.Patch Write(JournaledPatch patch) => new()
    {
        Offset = patch.Offset,
        Original = ByteString.CopyFrom(patch.Original.AsSpan()),
        SiteOffset = patch.SiteOffset,
        Templates = { patch.Templates.Select(template => new Wire.Template { Name = template.Name, Version = template.Version }) },
        SpringboardOffset = patch.Springboard is { } board ? unchecked((long)board.Address) : 0,
        Springboard = ByteString.CopyFrom(patch.Springboard is { } padding ? padding.Original.AsSpan() : []),
        Symbol = patch.Symbol,
    };

    private static Wire.PatchRefused Write(JournalEvent.PatchRefused refused) => new()
    {
        SiteOffset = refused.SiteOffset,
        Bytes = ByteString.CopyFrom(refused.Bytes.AsSpan()),
        Reason = refused.Reason,
        Kind = refused.Kind.ToString(),
        Symbol = refused.Symbol,
        KernelBase = refused.KernelBase,
    };

    private static Wire.Entry Write(JournalEntry entry) => new()
    {
        Patch = Write(entry.Patch),
        Status = entry.Status switch
        {
            PatchStatus.Intended => Wire.Status.Intended,
            PatchStatus.Applied => Wire.Status.Applied,
            PatchStatus.Reverted => Wire.Status.Reverted,
            PatchStatus.Retired => Wire.Status.Retired,
            PatchStatus.Mismatched => Wire.Status.Mismatched,
            _ => Wire.Status.Aborted,
        },
        Reason = entry.Reason,
        Transaction = entry.Transaction,
        ExitsBefore = entry.ExitsBefore,
        MillisecondsBefore = (long)entry.PeriodBefore.TotalMilliseconds,
    };

    private static JournaledPatch Read(Wire.Patch? patch) => patch is null
        ? new JournaledPatch(0, [], 0, [])
        : new JournaledPatch(
            patch.Offset,
            ImmutableArray.Create(patch.Original.Span),
            patch.SiteOffset,
            [.. patch.Templates.Select(template => new TemplateUse(template.Name, template.Version))],
            patch.Springboard.IsEmpty
                ? null
                : new Springboard(unchecked((ulong)patch.SpringboardOffset), ImmutableArray.Create(patch.Springboard.Span)))
        {
            Symbol = patch.Symbol,
        };

    private static JournalEvent.PatchIntended Read(Wire.PatchIntended intended) =>
        new(intended.Transaction, [.. intended.Patches.Select(Read)]) { KernelBase = intended.KernelBase };

    private static JournalEvent.PatchApplied Read(Wire.PatchApplied applied) => new(applied.Transaction, [.. applied.Offsets]);

    private static JournalEvent.PatchAborted Read(Wire.PatchAborted aborted) =>
        new(aborted.Transaction, [.. aborted.Offsets], aborted.Reason);

    private static JournalEvent.PatchRefused Read(Wire.PatchRefused refused) => new(
        refused.SiteOffset,
        ImmutableArray.Create(refused.Bytes.Span),
        refused.Reason,
        Enum.TryParse(refused.Kind, out ExitKind kind) && Enum.IsDefined(kind) ? kind : ExitKind.Other)
    {
        Symbol = refused.Symbol,
        KernelBase = refused.KernelBase,
    };

    private static JournalEvent ReadEnded(byte[] bytes, Func<long, string, JournalEvent> create)
    {
        Wire.PatchEnded ended = Wire.PatchEnded.Parser.ParseFrom(bytes);
        return create(ended.Offset, ended.Reason);
    }

    private static JournalEvent.PatchObserved Read(Wire.PatchObserved observed) =>
        new(observed.Offset, observed.Exits, Milliseconds(observed.Milliseconds));

    private static JournalEntry Read(Wire.Entry entry) => new(
        Read(entry.Patch),
        entry.Status switch
        {
            Wire.Status.Intended => PatchStatus.Intended,
            Wire.Status.Applied => PatchStatus.Applied,
            Wire.Status.Reverted => PatchStatus.Reverted,
            Wire.Status.Retired => PatchStatus.Retired,
            Wire.Status.Mismatched => PatchStatus.Mismatched,

            // A state that a newer version knows: the one that replays nothing and forbids nothing.
            _ => PatchStatus.Aborted,
        },
        entry.Reason,
        entry.Transaction,
        entry.ExitsBefore,
        Milliseconds(entry.MillisecondsBefore));

    private static JournalState Read(Wire.Snapshot snapshot)
    {
        // The last one wins, as it would with events: damaged bytes must not throw anything but a format error.
        var entries = ImmutableSortedDictionary.CreateBuilder<long, JournalEntry>();
        foreach (JournalEntry entry in snapshot.Entries.Select(Read))
        {
            entries[entry.Patch.Offset] = entry;
        }

        var refusals = ImmutableSortedDictionary.CreateBuilder<long, JournalEvent.PatchRefused>();
        foreach (JournalEvent.PatchRefused refusal in snapshot.Refusals.Select(Read))
        {
            refusals[refusal.SiteOffset] = refusal;
        }

        return new JournalState
        {
            LastTransaction = snapshot.LastTransaction,
            Entries = entries.ToImmutable(),
            Refusals = refusals.ToImmutable(),
            Disabled = [.. snapshot.Disabled],
            Variants = [.. snapshot.Variants.Select(Read)],
            KernelBase = snapshot.KernelBase,
        };
    }

    // Damaged bytes can hold any number; a TimeSpan cannot.
    private static TimeSpan Milliseconds(long count) =>
        TimeSpan.FromTicks(Math.Clamp(count, 0, long.MaxValue / TimeSpan.TicksPerMillisecond) * TimeSpan.TicksPerMillisecond);
}
