using System.Globalization;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Machine;

/// <summary>
/// Compares the virtual TLB with the guest's page tables, when the guest returns to user code: by then an operating system has flushed
/// what it changed in the current address space. An entry may be missing, or left over where the guest maps nothing any more and has
/// not flushed yet (kernels unmap lazily); it must never lead to another frame or allow more than the guest does.
/// </summary>
/// <remarks>
/// With several vCPUs an entry may be wrong for a while, and rightly so: another CPU has changed the page table, and the interrupt that
/// makes this one flush is still on its way; or another vCPU has asked to drop the entry a moment ago. Such a difference is one only if
/// it is found again in each of many comparisons, over a time in which any flush must have come.
/// </remarks>
internal sealed class TlbAudit(GuestMemory memory, CodePages code, CpuState state, VirtualTlb tlb, IClock clock, bool isAlone)
{
    private const int Period = 512;
    private const int SightingsToBelieve = 8;
    private const long NanosecondsToBelieve = 3_000_000_000;

    private readonly Dictionary<(ulong Root, ulong Address, ulong Entry), Suspicion> suspicions = [];
    private readonly List<(ulong Root, ulong Address, ulong Entry)> cleared = [];
    private int calls;

    /// <summary>Comparisons made.</summary>
    internal long Checks { get; private set; }

    /// <summary>Entries compared.</summary>
    internal long Entries { get; private set; }

    /// <summary>Compares from time to time; called at each entry to user code.</summary>
    /// <exception cref="InvalidOperationException">An entry allows what the guest's tables do not.</exception>
    internal void Sample()
    {
        if (++calls % Period == 0)
        {
            Compare();
        }
    }

    /// <summary>Compares all that the current tag has in both views.</summary>
    /// <exception cref="InvalidOperationException">An entry allows what the guest's tables do not.</exception>
    internal void Compare()
    {
        Check(userView: true);
        Check(userView: false);
        Checks++;
        foreach ((var key, Suspicion suspicion) in suspicions)
        {
            // Of other address spaces nothing new is known.
            if (suspicion.LastCheck != Checks && (key.Root == tlb.Root(userView: true) || key.Root == tlb.Root(userView: false)))
            {
                cleared.Add(key);
            }
        }

        foreach (var key in cleared)
        {
            _ = suspicions.Remove(key);
        }

        cleared.Clear();
    }

    private void Check(bool userView) => tlb.VisitLeaves(userView, (address, entry, level) =>
    {
        Entries++;
        string? problem = Problem(userView, address, entry, level);
        if (problem != null && IsBelieved((tlb.Root(userView), address, entry)))
        {
            throw new InvalidOperationException(string.Create(
                CultureInfo.InvariantCulture,
                $"audit: the {(userView ? "user" : "kernel")} view at 0x{address:x} has entry 0x{entry:x} (level {level}): {problem}"));
        }
    });

    private bool IsBelieved((ulong Root, ulong Address, ulong Entry) key)
    {
        if (isAlone)
        {
            return true;
        }

        long check = Checks + 1;
        Suspicion suspicion = suspicions.TryGetValue(key, out Suspicion known)
            ? known with { Sightings = known.Sightings + 1, LastCheck = check }
            : new Suspicion(clock.Nanoseconds, Sightings: 1, check);
        suspicions[key] = suspicion;
        return suspicion.Sightings >= SightingsToBelieve && clock.Nanoseconds - suspicion.Since >= NanosecondsToBelieve;
    }

    private string? Problem(bool userView, ulong address, ulong entry, int level)
    {
        PageEntry bits = (PageEntry)entry;
        ulong frame = (entry & Paging.FrameMask) >> Paging.PageShift;
        bool writable = bits.Has(PageEntry.Writable);
        bool executable = !bits.Has(PageEntry.NoExecute);
        if (writable && (level == 1 ? code.Contains(frame) : code.AnyInLargePage(frame)))
        {
            return "scanned code is writable";
        }

        Translation guest = PageWalk.Translate(memory, state.Paging, address, PageAccess.Probe);
        if (!guest.Allowed)
        {
            return null;
        }

        if (guest.Address.Frame != frame)
        {
            return string.Create(CultureInfo.InvariantCulture, $"the guest maps frame 0x{guest.Address.Frame:x}");
        }

        if (userView && !guest.User)
        {
            return "the page is the supervisor's";
        }

        if (writable && !(guest.Writable && guest.Dirty))
        {
            return "the guest's page is read-only, or not dirty yet";
        }

        return executable && (!guest.Executable || (!guest.User && !code.Contains(frame)))
            ? "it is executable, and the guest's page is not, or was not scanned"
            : null;
    }

    private readonly record struct Suspicion(long Since, int Sightings, long LastCheck);
}
