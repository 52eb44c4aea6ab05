using Dmp.Actors.Quiesce;

namespace Dmp.Actors.Specs.Quiesce;

public class StopClockSpecs
{
    [Fact(DisplayName = "A vCPU that was asked to stand before it ever ran has not been stopped")]
    public void Never_ran()
    {
        var clock = new StopClock(2);
        Assert.Null(clock.LastStop());
        clock.Resume(0);
        clock.Resume(1);
        Assert.Null(clock.LastStop());
        clock.Stop(0);
        clock.Resume(0);
        Assert.Null(clock.LastStop());
    }

    [Fact(DisplayName = "The world stands from the first stop to the last entry, and that is not known before the last entry")]
    public void World()
    {
        var clock = new StopClock(2);
        clock.Stop(0);
        clock.Stop(1);
        clock.Resume(1);
        Assert.Null(clock.LastStop());
        clock.Resume(0);
        Assert.InRange(clock.LastStop()!.Value, TimeSpan.Zero, TimeSpan.FromHours(1));
    }
}
