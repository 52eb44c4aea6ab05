using System.Collections.Immutable;
using Dmp.Kvm.Locking;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Patching;

/// <summary>
/// Which guest instruction an address in the arena belongs to, and the way back. Any thread; readers take no lock but where a patch is
/// likely to be involved.
/// </summary>
internal sealed class ImplantMap
{
    private const int FilterBits = 1 << 16;
    private const int BitsPerWord = 64;

    private readonly OrderedLock sync = new(LockRank.ImplantMap);

    // One bit for each hash of an address inside a window: most entries into guest code need nothing but this. Bits are only ever set:
    // while the vCPUs are paused, or in a scan. A vCPU comes to a page that another has scanned by asking CodePages, under whose lock
    // that was.
    private readonly ulong[] filter = new ulong[FilterBits / BitsPerWord];

    // Guest addresses behind the first instruction of a window in force, to the same instruction in its implant. Under sync.
    private readonly Dictionary<ulong, ulong> entries = [];

    // Sorted by address. Replaced as a whole, published with Volatile.
    private EncodedImplant[] implants = [];

    /// <summary>Whether an address lies in the arena.</summary>
    internal static bool IsInArena(ulong address) => address - MachineLayout.ArenaBase < MachineLayout.ArenaSize;

    /// <summary>Adds an implant, before any guest code leads to it.</summary>
    internal void Add(EncodedImplant implant)
    {
        using (sync.Enter())
        {
            int index = LastAtOrBelow(implants, implant.Address) + 1;
            Volatile.Write(ref implants, [.. implants[..index], implant, .. implants[index..]]);
        }
    }

    /// <summary>A window is in force: the addresses inside it lead into the implant.</summary>
    internal void Open(ulong window, EncodedImplant implant, ulong end)
    {
        using (sync.Enter())
        {
            foreach (ImplantAddress point in implant.Points)
            {
                if (point.Point != ImplantPoint.Inner && point.GuestAddress > window && point.GuestAddress < end
                    && entries.TryAdd(point.GuestAddress, implant.Address + (ulong)point.Offset))
                {
                    int hash = Hash(point.GuestAddress);
                    filter[hash / BitsPerWord] |= 1UL << (hash % BitsPerWord);
                }
            }
        }
    }

    /// <summary>A window is the guest's own again.</summary>
    internal void Close(ulong window, ulong end)
    {
        using (sync.Enter())
        {
            for (ulong address = window + 1; address < end; address++)
            {
                _ = entries.Remove(address);
            }
        }
    }

    /// <summary>Where guest code at an address really runs: in an implant, if it is the inside of a window in force.</summary>
    internal ulong RealAddress(ulong guestAddress)
    {
        int hash = Hash(guestAddress);
        if ((filter[hash / BitsPerWord] & (1UL << (hash % BitsPerWord))) == 0)
        {
            return guestAddress;
        }

        using (sync.Enter())
        {
            return entries.GetValueOrDefault(guestAddress, guestAddress);
        }
    }

    /// <summary>What an address in the arena means; null where there is no instruction of an implant.</summary>
    internal ImplantAddress? Find(ulong address)
    {
        EncodedImplant[] snapshot = Volatile.Read(ref implants);
        int index = LastAtOrBelow(snapshot, address);
        if (index < 0)
        {
            return null;
        }

        int offset = (int)Math.Min(address - snapshot[index].Address, int.MaxValue);
        ImmutableArray<ImplantAddress> points = snapshot[index].Points;
        int low = 0;
        int high = points.Length - 1;
        while (low <= high)
        {
            int middle = (low + high) / 2;
            if (points[middle].Offset == offset)
            {
                return points[middle];
            }

            if (points[middle].Offset < offset)
            {
                low = middle + 1;
            }
            else
            {
                high = middle - 1;
            }
        }

        return null;
    }

    private static int Hash(ulong address) => (int)((address * 0x9E37_79B9_7F4A_7C15UL) >> (BitsPerWord - 16));

    private static int LastAtOrBelow(EncodedImplant[] implants, ulong address)
    {
        int low = 0;
        int high = implants.Length;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (implants[middle].Address <= address)
            {
                low = middle + 1;
            }
            else
            {
                high = middle;
            }
        }

        return low - 1;
    }
}
