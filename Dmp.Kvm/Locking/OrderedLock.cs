namespace Dmp.Kvm.Locking;

/// <summary>
/// A lock with a place in the order in which a thread may take locks, so that no two threads can wait for each other. The same thread
/// may take it again. <c>using (sync.Enter()) { ... }</c>.
/// </summary>
/// <remarks>
/// Debug builds check the order, and whoever sets the runtime option <see cref="Option"/>; the specifications do. Otherwise it costs what
/// <see cref="Lock"/> costs.
/// </remarks>
/// <param name="rank">Its place.</param>
public sealed class OrderedLock(LockRank rank)
{
    /// <summary>Name of the runtime option.</summary>
    public const string Option = "Dmp.Kvm.CheckLockOrder";

#if DEBUG
    private const bool CheckedByDefault = true;
#else
    private const bool CheckedByDefault = false;
#endif

    private static readonly bool Checked = AppContext.TryGetSwitch(Option, out bool wanted) ? wanted : CheckedByDefault;

    [ThreadStatic]
    private static List<OrderedLock>? held;

    private readonly Lock inner = new();

    /// <summary>Whether the order is checked in this process.</summary>
    public static bool IsChecked => Checked;

    /// <summary>Its place in the order.</summary>
    public LockRank Rank => rank;

    /// <summary>Takes the lock; it is given back when the result is disposed of, by the same thread.</summary>
    /// <exception cref="LockOrderException">The thread holds a lock that comes later, or another one of the same kind.</exception>
    public Holding Enter()
    {
        if (Checked)
        {
            NoteEntry();
        }

        inner.Enter();
        return new Holding(this);
    }

    private void NoteEntry()
    {
        held ??= [];
        if (!held.Contains(this))
        {
            foreach (OrderedLock other in held)
            {
                if (other.Rank >= rank)
                {
                    throw new LockOrderException(rank, other.Rank);
                }
            }
        }

        held.Add(this);
    }

    private void Exit()
    {
        inner.Exit();
        if (Checked)
        {
            held!.RemoveAt(held.LastIndexOf(this));
        }
    }

    /// <summary>Holds a lock.</summary>
    public readonly ref struct Holding
    {
        private readonly OrderedLock owner;

        internal Holding(OrderedLock owner) => this.owner = owner;

        /// <summary>Gives the lock back.</summary>
        public void Dispose() => owner.Exit();
    }
}

/// <summary>A thread took locks in an order in which another one could take them the other way round: a defect.</summary>
/// <param name="wanted">The one it wanted.</param>
/// <param name="holds">The one it had.</param>
public sealed class LockOrderException(LockRank wanted, LockRank holds)
    : InvalidOperationException($"the lock of {wanted} was taken while that of {holds} was held");
