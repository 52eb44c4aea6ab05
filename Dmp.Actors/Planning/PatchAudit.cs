using System.Collections.Immutable;
using Dmp.Actors.Journal;
using Dmp.Kvm.Patching;

namespace Dmp.Actors.Planning;

/// <summary>The patches in force at the end of a run, compared byte by byte with the guest's code, and with the journal.</summary>
/// <param name="Verified">Patches in force that are in the guest's code as they should be, and in the journal as applied.</param>
/// <param name="Mismatched">Those that are not.</param>
/// <param name="Differences">One line for each way in which one is not.</param>
public sealed record PatchAudit(int Verified, int Mismatched, ImmutableArray<string> Differences)
{
    /// <summary>Compares. No vCPU may run.</summary>
    /// <param name="engine">The patches.</param>
    /// <param name="journal">What the journal holds, after all results are stored; null when that is not known.</param>
    public static PatchAudit Of(IPatchEngine engine, JournalState? journal)
    {
        ArgumentNullException.ThrowIfNull(engine);
        ImmutableArray<PatchPlan> inForce = engine.InForce();
        ImmutableArray<string> differences = engine.Verify();
        if (journal is not null)
        {
            ILookup<long, JournaledPatch> applied = journal.Entries.Values.Concat(journal.Variants)
                .Where(entry => entry.Status == PatchStatus.Applied)
                .ToLookup(entry => entry.Patch.Offset, entry => entry.Patch);
            ImmutableArray<string> unknown =
            [
                .. inForce.Where(plan => !applied[unchecked((long)(plan.Window - engine.KernelBase))]
                        .Any(patch => patch.ToPlan(engine.KernelBase).IsSamePatch(plan)))
                    .Select(plan => $"0x{plan.Window:x}: in force, but not in the journal"),
            ];
            differences = differences.AddRange(unknown);
        }

        // One that is wrong in both ways is one patch.
        int wrong = differences.Select(line => line[..line.IndexOf(':', StringComparison.Ordinal)]).Distinct().Count();
        return new PatchAudit(inForce.Length - wrong, wrong, differences);
    }
}
