using Dmp.Kvm.Devices;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.Devices;

public class TimerQueueSpecs
{
    [Property(DisplayName = "The kick is always arranged for the earliest timer, and every timer runs once, when it is due")]
    public void Merges((byte Timer, ushort Deadline)[] settings)
    {
        RecordingMachine machine = new();
        TimerQueue queue = new(3, machine);
        List<(int Timer, long Now)> ran = [];
        DeviceTimer[] timers = [.. Enumerable.Range(0, 4).Select(i => queue.Add(now => ran.Add((i, now))))];
        long[] deadlines = [.. Enumerable.Repeat(TimerQueue.Never, 4)];
        foreach ((byte timer, ushort deadline) in settings)
        {
            timers[timer % 4].Set(deadline);
            deadlines[timer % 4] = deadline;
            Assert.Equal(deadlines.Min(), queue.NextDeadline);
            Assert.Equal(deadlines.Min(), machine.Arranged[3]);
        }

        while (queue.NextDeadline != TimerQueue.Never)
        {
            queue.RunDue(queue.NextDeadline);
        }

        Assert.Equal(
            deadlines.Select((deadline, i) => (i, deadline)).Where(x => x.deadline != TimerQueue.Never).OrderBy(x => x.deadline),
            ran);
    }

    [Fact(DisplayName = "A timer that sets itself again arranges the next kick")]
    public void Periodic()
    {
        RecordingMachine machine = new();
        TimerQueue queue = new(0, machine);
        DeviceTimer? timer = null;
        timer = queue.Add(now => timer!.Set(now + 10));
        timer.Set(5);
        queue.RunDue(4);
        Assert.Equal(5, machine.Arranged[0]);
        machine.Arrangements = 0;
        queue.RunDue(7);
        Assert.Equal(17, machine.Arranged[0]);
        Assert.Equal(1, machine.Arrangements);
        timer.Cancel();
        Assert.Equal(TimerQueue.Never, machine.Arranged[0]);
    }

    [Fact(DisplayName = "A kick at a time of the vCPU's own choice is one more deadline: it displaces none, and none displaces it")]
    public void Second_look()
    {
        Board board = new(2);
        board.Chipset.LookAgainAt(0, 50);
        Assert.Equal(50, board.Machine.Arranged[0]);
        board.Out(0x43, 0x30); // The 8254, from whichever thread
        board.Out(0x40, 0x00);
        board.Out(0x40, 0x10);
        Assert.Equal(50, board.Machine.Arranged[0]);
        board.RunTo(60);
        long tick = board.Chipset.NextDeadline(0);
        Assert.InRange(tick, 61, TimerQueue.Never - 1);
        Assert.Equal(tick, board.Machine.Arranged[0]);
        board.Chipset.LookAgainAt(0, tick + 50);
        Assert.Equal(tick, board.Machine.Arranged[0]);
        Assert.False(board.Machine.Arranged.ContainsKey(1));
    }

    [Fact(DisplayName = "A vCPU that begins to run has its deadline arranged again, for what was arranged before reached nobody")]
    public void Rearranges()
    {
        Board board = new(2);
        board.Chipset.LookAgainAt(1, 50);
        board.Machine.Arranged.Clear();
        board.Chipset.BeginRun(1);
        Assert.Equal(50, board.Machine.Arranged[1]);
        board.Chipset.BeginRun(0);
        Assert.Equal(TimerQueue.Never, board.Machine.Arranged[0]);
    }
}
