namespace Dmp.Kvm.Memory;

/// <summary>
/// For each frame, the shadow slots that map it: intrusive doubly linked lists in flat arrays, so that linking and unlinking
/// allocate nothing. Belongs to one <see cref="VirtualTlb"/>.
/// </summary>
internal sealed class ReverseMap
{
    private const int None = -1;

    private readonly int[] heads;
    private readonly int[] next;
    private readonly int[] previous;

    internal ReverseMap(ulong frames, int slots)
    {
        // Stored off by one, so that fresh zeroed memory means "empty" and stays uncommitted until used.
        heads = new int[frames];
        next = new int[slots];
        previous = new int[slots];
    }

    /// <summary>The first slot that maps a frame, or -1.</summary>
    internal int First(ulong frame) => frame < (ulong)heads.Length ? heads[frame] - 1 : None;

    /// <summary>The slot after another of the same frame, or -1.</summary>
    internal int Next(int slot) => next[slot] - 1;

    /// <summary>Adds a slot to a frame's list.</summary>
    internal void Link(ulong frame, int slot)
    {
        if (frame >= (ulong)heads.Length)
        {
            return;
        }

        int head = heads[frame];
        next[slot] = head;
        previous[slot] = 0;
        if (head != 0)
        {
            previous[head - 1] = slot + 1;
        }

        heads[frame] = slot + 1;
    }

    /// <summary>Removes a slot from a frame's list.</summary>
    internal void Unlink(ulong frame, int slot)
    {
        if (frame >= (ulong)heads.Length)
        {
            return;
        }

        int after = next[slot];
        int before = previous[slot];
        if (after != 0)
        {
            previous[after - 1] = before;
        }

        if (before != 0)
        {
            next[before - 1] = after;
        }
        else
        {
            heads[frame] = after;
        }

        next[slot] = 0;
        previous[slot] = 0;
    }
}
