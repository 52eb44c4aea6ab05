using Dmp.Actors.Quiesce;

namespace Dmp.Actors.Specs.Quiesce;

public class StopClockSpecs
{
    private readonly StopClock clock = new(2);

    [Fact(DisplayName = "The world stands from the first stop to the last entry, and that is not known before the last entry")]
    public void World()
    {
        long asked = StopClock.Now;
        WorldStop stop = Stopped(asked)!;
        Assert.Null(stop.Length);
        clock.Resume(1);
        Assert.Null(stop.Length);
        clock.Resume(0);
        Assert.InRange(stop.Length!.Value, TimeSpan.Zero, TimeSpan.FromHours(1));
    }

    [Fact(DisplayName = "A vCPU that was asked to stand before it ever ran has not been stopped")]
    public void Never_ran()
    {
        long asked = StopClock.Now;
        clock.Resume(0);
        clock.Resume(1);
        clock.Stop(0);
        Assert.Null(clock.Stand(asked));
    }

    [Fact(DisplayName = "A vCPU that stood already, for somebody else, has not been stopped")]
    public void Stood_already()
    {
        clock.Stop(0);
        long asked = StopClock.Now;
        while (StopClock.Now == asked)
        {
            // The two times must differ.
        }

        clock.Stop(1);
        Assert.Null(clock.Stand(asked));
    }

    [Fact(DisplayName = "What the vCPUs do after they went on does not lengthen the stop before")]
    public void Later_stops()
    {
        WorldStop stop = Stopped(StopClock.Now)!;
        clock.Resume(0);
        clock.Resume(1);
        TimeSpan length = stop.Length!.Value;
        WorldStop later = Stopped(StopClock.Now)!;
        clock.Resume(0);
        clock.Resume(1);
        clock.Stop(0);
        clock.Resume(0);
        Assert.Equal(length, stop.Length);
        Assert.NotSame(stop, later);
    }

    private WorldStop? Stopped(long asked)
    {
        clock.Stop(0);
        clock.Stop(1);
        return clock.Stand(asked);
    }
}
