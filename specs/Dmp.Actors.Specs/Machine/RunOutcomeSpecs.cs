using Dmp.Actors.Machine;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Specs.Machine;

public class RunOutcomeSpecs
{
    private const string Panic = "Kernel panic - not syncing: x";

    private static readonly Dictionary<string, RunCause> Causes = new()
    {
        ["off"] = new RunCause.GuestStopped(new VcpuStop.PoweredOff()),
        ["reset"] = new RunCause.GuestStopped(new VcpuStop.Reset("port 0xcf9")),
        ["exit"] = new RunCause.GuestStopped(new VcpuStop.DebugExit(3)),
        ["failed"] = new RunCause.GuestStopped(new VcpuStop.GuestFailed("triple fault", "rip")),
        ["panic"] = new RunCause.Panicked(),
        ["until"] = new RunCause.UntilSeen(),
        ["timeout"] = new RunCause.TimedOut(TimeSpan.FromSeconds(5)),
        ["user"] = new RunCause.EndedByUser("Ctrl-a x", 0),
        ["own"] = new RunCause.OwnFailure("bug", null),
    };

    [Theory(DisplayName = "What came over the console last decides with what ended the run")]
    [InlineData("off", false, false, typeof(RunOutcome.PoweredOff))]
    [InlineData("off", false, true, typeof(RunOutcome.GuestFailed))]
    [InlineData("off", true, false, typeof(RunOutcome.UntilSeen))]
    [InlineData("reset", false, false, typeof(RunOutcome.PoweredOff))]
    [InlineData("reset", false, true, typeof(RunOutcome.GuestFailed))]
    [InlineData("exit", false, true, typeof(RunOutcome.DebugExit))]
    [InlineData("failed", false, false, typeof(RunOutcome.GuestFailed))]
    [InlineData("failed", true, false, typeof(RunOutcome.UntilSeen))]
    [InlineData("panic", false, true, typeof(RunOutcome.GuestFailed))]
    [InlineData("panic", true, true, typeof(RunOutcome.UntilSeen))]
    [InlineData("until", true, false, typeof(RunOutcome.UntilSeen))]
    [InlineData("timeout", false, false, typeof(RunOutcome.TimedOut))]
    [InlineData("timeout", true, false, typeof(RunOutcome.UntilSeen))]
    [InlineData("timeout", false, true, typeof(RunOutcome.GuestFailed))]
    [InlineData("user", true, true, typeof(RunOutcome.EndedByUser))]
    [InlineData("own", true, true, typeof(RunOutcome.VmmFailed))]
    public void Outcomes(string cause, bool untilSeen, bool panicked, Type outcome) =>
        Assert.IsType(outcome, RunOutcome.Of(Causes[cause], untilSeen, panicked ? Panic : null));

    [Fact(DisplayName = "A reset says which way it went")]
    public void Reset_says_how() =>
        Assert.Equal("guest reset (port 0xcf9)", RunOutcome.Of(Causes["reset"], untilSeen: false, panic: null).Detail);
}
