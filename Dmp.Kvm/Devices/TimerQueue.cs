using Dmp.Kvm.Locking;

namespace Dmp.Kvm.Devices;

/// <summary>
/// The deadlines of all devices that one vCPU serves, merged into the one kick that <see cref="IMachineControl.KickAt"/> arranges.
/// The vCPU calls <see cref="RunDue"/> when it was kicked (or whenever <see cref="NextDeadline"/> has passed).
/// <para>
/// Timers may be set from any thread. The queue's lock is the innermost of all: it is held while KickAt is called, so that the
/// arrangements reach the machine in order, and never while a timer's action runs.
/// </para>
/// </summary>
public sealed class TimerQueue
{
    /// <summary>The deadline of a timer that is not set.</summary>
    public const long Never = long.MaxValue;

    private readonly OrderedLock gate = new(LockRank.Timers);
    private readonly int vcpu;
    private readonly IMachineControl control;
    private DeviceTimer[] timers = [];
    private long earliest = Never;
    private long arranged = Never;

    /// <summary>Makes the queue of a vCPU.</summary>
    /// <param name="vcpu">Index of the vCPU that is kicked and runs the actions.</param>
    /// <param name="control">Arranges the kicks.</param>
    public TimerQueue(int vcpu, IMachineControl control)
    {
        this.vcpu = vcpu;
        this.control = control;
    }

    /// <summary>The earliest deadline, in nanoseconds of <see cref="IClock.Nanoseconds"/>, or <see cref="Never"/>. Any thread.</summary>
    public long NextDeadline => Volatile.Read(ref earliest);

    /// <summary>Adds a timer. Only while the machine is built.</summary>
    /// <param name="action">Runs when the timer is due, with the time; on the vCPU's thread, without locks held.</param>
    public DeviceTimer Add(Action<long> action)
    {
        DeviceTimer timer = new(this, action);
        timers = [.. timers, timer];
        return timer;
    }

    /// <summary>Runs the actions of the timers that are due. The vCPU's thread; cheap when none is.</summary>
    /// <param name="now">Time on <see cref="IClock.Nanoseconds"/>.</param>
    public void RunDue(long now)
    {
        if (now < NextDeadline)
        {
            return;
        }

        using (gate.Enter())
        {
            if (arranged <= now)
            {
                arranged = Never; // That kick has come, or comes to nothing: no need to take it back.
            }
        }

        foreach (DeviceTimer timer in timers)
        {
            if (TryTakeDue(timer, now))
            {
                timer.Action(now);
            }
        }

        using (gate.Enter())
        {
            Arrange();
        }
    }

    /// <summary>Arranges the kick again: the vCPU begins to run, and what was arranged before reached nobody. Any thread.</summary>
    public void Rearrange()
    {
        using (gate.Enter())
        {
            arranged = earliest;
            control.KickAt(vcpu, earliest);
        }
    }

    internal void Set(DeviceTimer timer, long deadline)
    {
        using (gate.Enter())
        {
            timer.Deadline = deadline;
            Arrange();
        }
    }

    private bool TryTakeDue(DeviceTimer timer, long now)
    {
        using (gate.Enter())
        {
            if (timer.Deadline > now)
            {
                return false;
            }

            timer.Deadline = Never;
            return true;
        }
    }

    private void Arrange()
    {
        long deadline = Never;
        foreach (DeviceTimer timer in timers)
        {
            deadline = Math.Min(deadline, timer.Deadline);
        }

        Volatile.Write(ref earliest, deadline);
        if (deadline != arranged)
        {
            arranged = deadline;
            control.KickAt(vcpu, deadline);
        }
    }
}

/// <summary>One device's timer in a <see cref="TimerQueue"/>.</summary>
public sealed class DeviceTimer
{
    private readonly TimerQueue queue;

    internal DeviceTimer(TimerQueue queue, Action<long> action)
    {
        this.queue = queue;
        Action = action;
    }

    internal Action<long> Action { get; }

    // Under the queue's lock.
    internal long Deadline { get; set; } = TimerQueue.Never;

    /// <summary>Sets the timer, replacing what it was set to. Any thread.</summary>
    /// <param name="nanoseconds">Time on <see cref="IClock.Nanoseconds"/>; one that has passed is due at the next RunDue.</param>
    public void Set(long nanoseconds) => queue.Set(this, nanoseconds);

    /// <summary>Unsets the timer. Its action may still be running on the vCPU's thread. Any thread.</summary>
    public void Cancel() => queue.Set(this, TimerQueue.Never);
}
