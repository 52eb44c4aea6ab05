using Dmp.Kvm.Locking;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Machine;

/// <summary>
/// Takes a frame out of the virtual TLBs of other vCPUs, without stopping the world: each TLB belongs to its vCPU's thread, so a request
/// goes to that thread, and the vCPU is kicked if it is in guest code. Nobody waits for the entries to be dropped, only for the vCPU to be
/// out of guest code: it drops what it was asked to before it enters again.
/// </summary>
/// <remarks>
/// <para>
/// Ordering: a vCPU says that it enters (full barrier) and then looks for requests; whoever asks puts the request (full barrier) and then
/// looks whether the vCPU is in guest code. So either the request is seen before the entry, or the entry is seen and waited for.
/// </para>
/// <para>
/// A vCPU between guest code and the point where it counts as outside takes no lock but for moments <see cref="CodeScan.CodePages"/>';
/// who waits here holds <see cref="CodeScan.CodePages.Changes"/>, which is above that one. A vCPU that a kick took out in the middle of
/// something (an exception on its way into the monitor, a template) still counts as inside: it goes on from there without a look at
/// requests.
/// </para>
/// </remarks>
internal sealed class TlbShootdown
{
    private readonly Action<int> kick;
    private readonly FrameUsers users;
    private readonly Inbox[] inboxes;
    private long requests;

    /// <summary>Nobody is in guest code, and nothing is mapped.</summary>
    /// <param name="vcpus">Number of vCPUs.</param>
    /// <param name="frames">Frames of guest RAM.</param>
    /// <param name="kick">Takes a vCPU out of guest code; any thread.</param>
    internal TlbShootdown(int vcpus, ulong frames, Action<int> kick)
    {
        this.kick = kick;
        users = new FrameUsers(frames);
        inboxes = [.. Enumerable.Range(0, vcpus).Select(_ => new Inbox())];
    }

    /// <summary>Requests made since the start, counted once for each vCPU that was asked. Any thread.</summary>
    internal long Requests => Volatile.Read(ref requests);

    private bool IsAlone => inboxes.Length == 1;

    /// <summary>A vCPU is about to fill an entry for a frame; before it looks at what the frame holds. The vCPU's thread.</summary>
    /// <param name="frame">The frame.</param>
    /// <param name="vcpu">The calling vCPU.</param>
    /// <param name="large">Whether the entry may map the whole 2 MiB around it.</param>
    internal void NoteUse(ulong frame, int vcpu, bool large)
    {
        if (IsAlone)
        {
            return;
        }

        users.Note(frame, vcpu);
        if (large)
        {
            users.NoteLarge(frame, vcpu);
        }
    }

    /// <summary>The vCPU enters guest code, unless there are requests. The vCPU's thread.</summary>
    /// <returns>Whether it is inside now; if not, it has to take its requests first.</returns>
    internal bool TryEnter(int vcpu)
    {
        if (IsAlone)
        {
            return true;
        }

        Inbox inbox = inboxes[vcpu];
        _ = Interlocked.Exchange(ref inbox.Inside, 1);
        if (Volatile.Read(ref inbox.Count) == 0)
        {
            return true;
        }

        Leave(vcpu);
        return false;
    }

    /// <summary>The vCPU is out of guest code, between two of its instructions. The vCPU's thread.</summary>
    internal void Leave(int vcpu) => Volatile.Write(ref inboxes[vcpu].Inside, 0);

    /// <summary>Whether requests wait. The vCPU's thread.</summary>
    internal bool HasRequests(int vcpu) => Volatile.Read(ref inboxes[vcpu].Count) != 0;

    /// <summary>Does what other vCPUs asked for. The vCPU's thread.</summary>
    internal void Serve(int vcpu, VirtualTlb tlb)
    {
        Inbox inbox = inboxes[vcpu];
        while (inbox.TryTake(out Request request))
        {
            if (request.Everything)
            {
                tlb.FlushAll();
            }
            else if (request.WritableOnly)
            {
                tlb.DropWritable(request.Frame);
            }
            else
            {
                tlb.DropFrame(request.Frame);
            }
        }
    }

    /// <summary>
    /// Makes sure that no other vCPU uses a frame, or writes to it, through an entry of before this call. What a frame is has been changed
    /// before, so that they fill no new entries like those. The calling vCPU drops its own.
    /// </summary>
    /// <param name="frame">The frame.</param>
    /// <param name="vcpu">The calling vCPU.</param>
    /// <param name="writableOnly">Whether entries that are read-only may stay.</param>
    internal void Shoot(ulong frame, int vcpu, bool writableOnly)
    {
        if (IsAlone)
        {
            return;
        }

        uint others = users.Of(frame) & ~(1u << vcpu);
        for (int other = 0; other < inboxes.Length; other++)
        {
            if ((others & (1u << other)) != 0)
            {
                inboxes[other].Put(new Request(frame, writableOnly));
                _ = Interlocked.Increment(ref requests);
                if (Volatile.Read(ref inboxes[other].Inside) != 0)
                {
                    kick(other);
                }
            }
        }

        for (int other = 0; other < inboxes.Length; other++)
        {
            // Its thread may have no CPU at the moment: give it this one.
            SpinWait spin = default;
            while ((others & (1u << other)) != 0 && Volatile.Read(ref inboxes[other].Inside) != 0 && HasRequests(other))
            {
                spin.SpinOnce(sleep1Threshold: -1);
            }
        }
    }

    private readonly record struct Request(ulong Frame, bool WritableOnly, bool Everything = false);

    private sealed class Inbox
    {
        private const int Room = 256;

        private readonly OrderedLock sync = new(LockRank.Shootdown);
        private readonly Queue<Request> waiting = new(Room);

        /// <summary>Not 0: in guest code. Written by the vCPU's thread, by interlocked exchange before it reads <see cref="Count"/>.</summary>
        internal int Inside;

        /// <summary>How many wait. Written under the lock.</summary>
        internal int Count;

        internal void Put(Request request)
        {
            using (sync.Enter())
            {
                if (waiting.Count == Room)
                {
                    // A vCPU that halts for long: it drops all it has rather than read a long list.
                    waiting.Clear();
                    waiting.Enqueue(new Request(0, WritableOnly: false, Everything: true));
                }

                waiting.Enqueue(request);

                // A full barrier: the caller reads Inside next.
                _ = Interlocked.Exchange(ref Count, waiting.Count);
            }
        }

        internal bool TryTake(out Request request)
        {
            if (Volatile.Read(ref Count) == 0)
            {
                request = default;
                return false;
            }

            using (sync.Enter())
            {
                bool any = waiting.TryDequeue(out request);
                Volatile.Write(ref Count, waiting.Count);
                return any;
            }
        }
    }
}
