using Dmp.Kvm.Locking;

namespace Dmp.Kvm.Specs.Locking;

/// <summary>Locks that can only be taken in one order.</summary>
public class OrderedLockSpecs
{
    private readonly OrderedLock outer = new(LockRank.CodePages);
    private readonly OrderedLock inner = new(LockRank.PatchEngine);

    [Fact(DisplayName = "The specifications run with the order of locks checked")]
    public void Checked() => Assert.True(OrderedLock.IsChecked);

    [Fact(DisplayName = "A thread takes locks from the outermost to the innermost, and each again while it has it")]
    public void InOrder()
    {
        using (outer.Enter())
        using (inner.Enter())
        using (outer.Enter())
        using (inner.Enter())
        {
        }

        using (inner.Enter())
        {
        }
    }

    [Fact(DisplayName = "A lock is refused to a thread that holds one which comes later, and is free for others then")]
    public void AgainstOrder()
    {
        using (inner.Enter())
        {
            Assert.Throws<LockOrderException>(Take);
        }

        Take();

        void Take()
        {
            using (outer.Enter())
            {
            }
        }
    }

    [Fact(DisplayName = "Two locks of a kind are not taken at the same time: nothing says which comes first")]
    public void SameKind()
    {
        OrderedLock twin = new(LockRank.CodePages);
        using (outer.Enter())
        {
            Assert.Throws<LockOrderException>(Take);
        }

        void Take()
        {
            using (twin.Enter())
            {
            }
        }
    }

    [Fact(DisplayName = "One thread at a time holds a lock")]
    public void Exclusive()
    {
        const int Threads = 4;
        const int Rounds = 20_000;
        int count = 0;
        Thread[] threads = [.. Enumerable.Range(0, Threads).Select(_ => new Thread(() =>
        {
            for (int round = 0; round < Rounds; round++)
            {
                using (outer.Enter())
                {
                    count++;
                }
            }
        }))];

        Array.ForEach(threads, thread => thread.Start());
        Array.ForEach(threads, thread => thread.Join());

        Assert.Equal(Threads * Rounds, count);
    }
}
