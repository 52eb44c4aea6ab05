using Akka.Actor;
using Akka.TestKit;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Console;
using Dmp.Actors.Exits;
using Dmp.Actors.Machine;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Specs.Machine;

/// <summary>Whole runs on fake vCPUs. Time stands still unless a spec moves it, so that nothing here depends on how fast it runs.</summary>
public sealed class MachineSupervisorSpecs : TestKit
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan Often = TimeSpan.FromMilliseconds(5);
    private static readonly TimeSpan Step = TimeSpan.FromMilliseconds(20);

    private readonly FakeMachine machine = new(cpus: 2);
    private readonly FakeSink sink = new();
    private readonly TaskCompletionSource<MachineResult> completion = new(TaskCreationOptions.RunContinuationsAsynchronously);

    public MachineSupervisorSpecs()
        : base(Settings.InVirtualTime)
    {
    }

    private TestScheduler Time => (TestScheduler)Sys.Scheduler;

    [Fact(DisplayName = "The shutdown stops the vCPUs, then drains the console, then closes the counters")]
    public async Task Shutdown_order()
    {
        Start();
        machine.FakeConsole.Write("going\n");
        machine.Fakes[0].Count(ExitKind.Io, 0x1000);
        await Eventually(() => sink.Text == "going\n");
        machine.Fakes[0].Count(ExitKind.Io, 0x1000);

        // Written at the very end: only a drain after the stop finds it.
        machine.FakeConsole.Write("::phase last::\nbye");
        machine.Fakes[0].Stop(new VcpuStop.PoweredOff());

        MachineResult result = await Result();
        Assert.IsType<RunOutcome.PoweredOff>(result.Outcome);
        Assert.Equal("going\n::phase last::\nbye", sink.Text);
        Assert.Equal(["boot", "last"], result.Summary.Phases.Select(phase => phase.Name));
        Assert.Equal(2, result.Summary.Total.Total);
        Assert.Equal(new SiteCount(0x1000, ExitKind.Io, 2), Assert.Single(result.Summary.Sites));
        Assert.Empty(result.Unfinished);
        Assert.True(result.ThreadsEnded);
        Assert.DoesNotContain("disposed", machine.Events);
    }

    [Fact(DisplayName = "A run disposes its machine last, after the vCPU threads ended")]
    public async Task Dispose_is_last()
    {
        var options = new RunOptions { Sink = sink };
        await using (MachineRun run = MachineRun.Start(machine, options, Settings.Shipped))
        {
            machine.Fakes[1].Stop(new VcpuStop.PoweredOff());
            await run.Completion.WaitAsync(Limit);
            Assert.DoesNotContain("disposed", machine.Events);
        }

        Assert.Equal(["vcpu 0 Paused", "vcpu 1 PoweredOff", "disposed"], machine.Events.Order().OrderBy(name => name == "disposed"));
        Assert.Equal("disposed", machine.Events.Last());
    }

    [Fact(DisplayName = "All vCPUs pause and resume together")]
    public async Task Pause_and_resume()
    {
        IActorRef supervisor = await Started();
        supervisor.Tell(new MachineProtocol.PauseAll(1), TestActor);
        await ExpectMsgAsync(new MachineProtocol.AllPaused(1), Limit);
        supervisor.Tell(new MachineProtocol.PauseAll(2), TestActor);
        await ExpectMsgAsync(new MachineProtocol.AllPaused(2), Limit);
        supervisor.Tell(new MachineProtocol.ResumeAll(3), TestActor);
        await ExpectMsgAsync(new MachineProtocol.AllResumed(3), Limit);
        supervisor.Tell(new MachineProtocol.ResumeAll(4), TestActor);
        await ExpectMsgAsync(new MachineProtocol.AllResumed(4), Limit);
        await Eventually(() => machine.Fakes.All(vcpu => vcpu.Runs == 2));
    }

    [Fact(DisplayName = "A machine ends while it is paused")]
    public async Task Ends_while_paused()
    {
        IActorRef supervisor = await Started();
        supervisor.Tell(new MachineProtocol.PauseAll(1), TestActor);
        await ExpectMsgAsync(new MachineProtocol.AllPaused(1), Limit);
        supervisor.Tell(new MachineProtocol.End(new RunCause.EndedByUser("Ctrl-a x", 0)));
        Assert.IsType<RunOutcome.EndedByUser>((await Result()).Outcome);
    }

    [Fact(DisplayName = "A vCPU that does not pause in time is named, the others go on, and it follows when it stops at last")]
    public async Task Pause_timeout()
    {
        IActorRef supervisor = await Started();
        machine.Fakes[1].IgnoresPause = true;
        supervisor.Tell(new MachineProtocol.PauseAll(1), TestActor);
        await Eventually(() => machine.Events.Contains("vcpu 0 Paused"));
        await AdvanceUntilAnswer();
        var answer = await ExpectMsgAsync<MachineProtocol.NotAllPaused>(Limit);
        Assert.Equal(1, Assert.Single(answer.Missing));

        await Eventually(() => machine.Fakes[0].Runs == 2);
        machine.Fakes[1].Stop(new VcpuStop.Paused());
        await Eventually(() => machine.Fakes[1].Runs == 2);
    }

    [Fact(DisplayName = "A request during a pause is refused, and a pause that the end of the run overtakes is answered")]
    public async Task Requests_are_always_answered()
    {
        IActorRef supervisor = await Started();
        machine.Fakes[1].IgnoresPause = true;
        supervisor.Tell(new MachineProtocol.PauseAll(1), TestActor);
        supervisor.Tell(new MachineProtocol.ResumeAll(2), TestActor);
        await ExpectMsgAsync(new MachineProtocol.Refused(2, MachineProtocol.Stage.Pausing), Limit);
        machine.Fakes[1].Stop(new VcpuStop.PoweredOff());
        await ExpectMsgAsync(new MachineProtocol.Refused(1, MachineProtocol.Stage.Ending), Limit);
        Assert.IsType<RunOutcome.PoweredOff>((await Result()).Outcome);
        supervisor.Tell(new MachineProtocol.PauseAll(3), TestActor);
        await ExpectMsgAsync(new MachineProtocol.Refused(3, MachineProtocol.Stage.Ending), Limit);
    }

    [Fact(DisplayName = "A failing emulator pauses the machine, keeps the state of every vCPU, and ends with a report")]
    public async Task Emulator_failure()
    {
        Start();
        machine.Fakes[0].Throw(new InvalidOperationException("bug"));
        MachineResult result = await Result();
        var failed = Assert.IsType<RunOutcome.VmmFailed>(result.Outcome);
        Assert.Contains("vCPU 0", failed.Detail, StringComparison.Ordinal);
        Assert.Equal("bug", failed.Failure?.Message);
        Assert.Equal(["state of vCPU 0", "state of vCPU 1"], result.Vcpus.Select(vcpu => vcpu.State));
        Assert.Contains("vcpu 1 Paused", machine.Events);
        Assert.True(result.ThreadsEnded);
    }

    [Fact(DisplayName = "A vCPU that never stops does not keep the report back, and the machine is not taken from under it")]
    public async Task Stuck_vcpu()
    {
        Start();
        machine.Fakes[1].IgnoresPause = true;
        machine.Fakes[0].Stop(new VcpuStop.PoweredOff());
        await AdvanceUntilResult();
        MachineResult result = await Result();
        Assert.StartsWith("vCPU 1 did not stop", Assert.Single(result.Unfinished), StringComparison.Ordinal);
        Assert.False(result.ThreadsEnded);
    }

    [Fact(DisplayName = "A failing console is restarted; the guest runs on, no byte is lost or repeated")]
    public async Task Console_failure()
    {
        Start();
        machine.FakeConsole.Write("before ");
        await Eventually(() => sink.Text == "before ");
        await EventFilter.Exception<InvalidOperationException>().ExpectAsync(3, Limit, () =>
        {
            sink.FailNext(3);
            machine.FakeConsole.Write("during ");
            return Task.CompletedTask;
        });
        machine.FakeConsole.Write("after");
        await Eventually(() => sink.Text == "before during after");
        Assert.All(machine.Fakes, vcpu => Assert.Equal(1, vcpu.Runs));
        machine.Fakes[0].Stop(new VcpuStop.PoweredOff());
        Assert.IsType<RunOutcome.PoweredOff>((await Result()).Outcome);
    }

    [Fact(DisplayName = "A failing aggregator is restarted; the guest runs on, the phases are kept")]
    public async Task Aggregator_failure()
    {
        IActorRef supervisor = await Started();
        machine.FakeConsole.Write("::phase work::\n");
        await Eventually(async () =>
            (await supervisor.Ask<ExitProtocol.Totals>(new ExitProtocol.GetTotals(1), Limit)).Phase == "work");
        await EventFilter.Exception<InvalidOperationException>().ExpectOneAsync(Limit, async () =>
        {
            machine.Fakes[0].FailingReads = 1;
            await Eventually(() =>
            {
                Time.Advance(Settings.Shipped.SamplingInterval);
                return machine.Fakes[0].FailingReads == 0;
            });
        });
        var totals = await supervisor.Ask<ExitProtocol.Totals>(new ExitProtocol.GetTotals(2), Limit);
        Assert.Equal("work", totals.Phase);
        Assert.All(machine.Fakes, vcpu => Assert.Equal(1, vcpu.Runs));
        machine.Fakes[0].Stop(new VcpuStop.PoweredOff());
        Assert.Equal(["boot", "work"], (await Result()).Summary.Phases.Select(phase => phase.Name));
    }

    [Fact(DisplayName = "A console that fails too often ends the run with a report")]
    public async Task Console_gives_up()
    {
        Start();
        sink.FailNext(int.MaxValue);
        machine.FakeConsole.Write("text");
        MachineResult result = await Result();
        Assert.IsType<RunOutcome.VmmFailed>(result.Outcome);
        Assert.Equal(2, result.Vcpus.Length);
    }

    [Fact(DisplayName = "--until ends the run as soon as its text is there")]
    public async Task Until()
    {
        Start(until: "login:");
        machine.FakeConsole.Write("Debian log");
        machine.FakeConsole.Write("in: ");
        MachineResult result = await Result();
        Assert.IsType<RunOutcome.UntilSeen>(result.Outcome);
        Assert.NotNull(result.UntilAt);
    }

    [Fact(DisplayName = "--timeout ends the run, with the state of the vCPUs")]
    public async Task Timeout()
    {
        await Started(timeout: TimeSpan.FromSeconds(100));
        Time.Advance(TimeSpan.FromSeconds(100));
        MachineResult result = await Result();
        Assert.IsType<RunOutcome.TimedOut>(result.Outcome);
        Assert.Equal(2, result.Vcpus.Length);
    }

    [Fact(DisplayName = "A panic ends the run after a grace for the rest of its text")]
    public async Task Panic()
    {
        Start();
        machine.FakeConsole.Write("Kernel panic - not syncing: no init\n");
        await Eventually(() => sink.Text.EndsWith('\n'));
        machine.FakeConsole.Write("---[ end Kernel panic ]---");
        await AdvanceUntilResult();
        MachineResult result = await Result();
        Assert.Equal("Kernel panic - not syncing: no init", Assert.IsType<RunOutcome.GuestFailed>(result.Outcome).Detail);
        Assert.EndsWith("]---", sink.Text, StringComparison.Ordinal);
    }

    [Fact(DisplayName = "A reset after a panic is a failure of the guest, whichever of the two was noticed first")]
    public async Task Panic_and_reset()
    {
        Start();
        machine.FakeConsole.Write("Kernel panic - not syncing: no init\n");
        machine.Fakes[0].Stop(new VcpuStop.Reset("keyboard controller"));
        Assert.IsType<RunOutcome.GuestFailed>((await Result()).Outcome);
    }

    [Fact(DisplayName = "Input waits for a guest that does not read, and is answered when the run ends before")]
    public async Task Input()
    {
        IActorRef supervisor = await Started();
        machine.FakeConsole.InputCapacity = 3;
        supervisor.Tell(new ConsoleProtocol.Input(1, "abcdef"u8.ToArray()), TestActor);
        await Eventually(() => machine.FakeConsole.Input == "abc");
        machine.FakeConsole.InputCapacity = 6;
        await Eventually(() =>
        {
            Time.Advance(Settings.Shipped.InputRetry);
            return machine.FakeConsole.Input == "abcdef";
        });
        await ExpectMsgAsync(new ConsoleProtocol.InputTaken(1), Limit);
        supervisor.Tell(new ConsoleProtocol.Input(2, "gh"u8.ToArray()), TestActor);
        machine.Fakes[0].Stop(new VcpuStop.PoweredOff());
        await ExpectMsgAsync(new ConsoleProtocol.InputDropped(2, 2), Limit);
    }

    private IActorRef Start(string? until = null, TimeSpan? timeout = null)
    {
        var options = new RunOptions { Sink = sink, Until = until, Timeout = timeout };
        return Sys.ActorOf(MachineSupervisor.Props(machine, options, Settings.Shipped, completion));
    }

    private async Task<IActorRef> Started(TimeSpan? timeout = null)
    {
        IActorRef supervisor = Start(timeout: timeout);
        await Eventually(async () =>
            (await supervisor.Ask<MachineProtocol.Status>(new MachineProtocol.GetStatus(0), Limit)).Stage
            == MachineProtocol.Stage.Running);
        await Eventually(() => machine.Fakes.All(vcpu => vcpu.Runs == 1));
        return supervisor;
    }

    private Task<MachineResult> Result() => completion.Task.WaitAsync(Limit);

    // The timer is set by an actor a moment from now, so time is moved until it has struck: slowly, because the steps after it,
    // which take no virtual time at all, have limits too.
    private Task AdvanceUntilResult() => Eventually(() =>
    {
        Time.Advance(Step);
        return completion.Task.IsCompleted;
    });

    private Task AdvanceUntilAnswer() => Eventually(() =>
    {
        Time.Advance(Step);
        return HasMessages;
    });

    private Task Eventually(Func<bool> condition) => AwaitConditionAsync(() => Task.FromResult(condition()), Limit, Often);

    private Task Eventually(Func<Task<bool>> condition) => AwaitConditionAsync(condition, Limit, Often);
}
