using System.Collections.Concurrent;
using Akka.Actor;
using Akka.TestKit;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Exits;
using Dmp.Actors.Machine;
using Dmp.Actors.Planning;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;
using FsCheck.Xunit;

namespace Dmp.Actors.Specs.Machine;

/// <summary>What becomes of the other vCPUs when something happens on one.</summary>
public sealed class SeveralVcpusSpecs : TestKit
{
    private const ulong Site = FakePatchEngine.Base + 0x100;
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan Often = TimeSpan.FromMilliseconds(5);

    public SeveralVcpusSpecs()
        : base(Settings.InVirtualTime)
    {
    }

    private TestScheduler Time => (TestScheduler)Sys.Scheduler;

    [Fact(DisplayName = "A failure on one vCPU stops the others at once: one that stands for a transaction then does not go on")]
    public async Task Failure_during_a_transaction()
    {
        Run run = await StartedAsync(3);
        run.Fakes[1].IgnoresPause = true;
        run.Fakes[2].IgnoresPause = true;
        run.Heat(Site);
        Time.Advance(Settings.Shipped.DetectionInterval);
        await Eventually(() => run.Machine.Events.Contains("vcpu 0 Paused"));
        run.Fakes[1].Throw(new InvalidOperationException("bug"));
        await Eventually(async () => await StageAsync(run) == MachineProtocol.Stage.Ending);
        run.Fakes[2].IgnoresPause = false;
        run.Fakes[2].Stop(new VcpuStop.Paused());
        MachineResult result = await run.ResultAsync();
        Assert.Contains("vCPU 1", Assert.IsType<RunOutcome.VmmFailed>(result.Outcome).Detail, StringComparison.Ordinal);
        Assert.All(run.Fakes, vcpu => Assert.Equal(1, vcpu.Runs));
        Assert.Equal((0, 1), (result.Patches?.Applied, result.Patches?.Aborted));
        Assert.Equal(["state of vCPU 0", "state of vCPU 1", "state of vCPU 2"], result.Vcpus.Select(vcpu => vcpu.State));
        Assert.True(result.ThreadsEnded);
        Assert.Empty(result.Unfinished);
    }

    [Fact(DisplayName = "The first failure is the cause, and the log has the second")]
    public async Task Two_failures()
    {
        Run run = await StartedAsync(3);
        run.Fakes[2].IgnoresPause = true;
        run.Fakes[0].Stop(new VcpuStop.GuestFailed("triple fault", "registers"));
        await Eventually(async () => await StageAsync(run) == MachineProtocol.Stage.Ending);
        await EventFilter.Warning(contains: "vCPU 2 failed: InvalidOperationException: bug").ExpectOneAsync(Limit, () =>
        {
            run.Fakes[2].Throw(new InvalidOperationException("bug"));
            return Task.CompletedTask;
        });
        MachineResult result = await run.ResultAsync();
        Assert.Equal("registers", Assert.IsType<RunOutcome.GuestFailed>(result.Outcome).State);
        Assert.Equal(3, result.Vcpus.Length);
    }

    [Fact(DisplayName = "Of sixteen vCPUs one does not stand in time: the transaction is given up, all others go on, and it as well when it stands")]
    public async Task One_of_sixteen()
    {
        const int Slow = 11;
        Run run = await StartedAsync(16);
        run.Fakes[Slow].IgnoresPause = true;
        run.Heat(Site);
        Time.Advance(Settings.Shipped.DetectionInterval);
        FakeVcpu[] others = [.. run.Fakes.Where(vcpu => vcpu.Index != Slow)];
        await Eventually(() => others.All(vcpu => run.Machine.Events.Contains($"vcpu {vcpu.Index} Paused")));
        Time.Advance(Settings.Shipped.QuiesceTimeout);
        await Eventually(() => others.All(vcpu => vcpu.Runs == 2));
        run.Fakes[Slow].IgnoresPause = false;
        run.Fakes[Slow].Stop(new VcpuStop.Paused());
        await Eventually(() => run.Fakes[Slow].Runs == 2);
        Assert.Empty(run.Engine.Calls);
        run.Fakes[0].Stop(new VcpuStop.PoweredOff());
        Assert.Equal(1, (await run.ResultAsync()).Patches?.Aborted);
    }

    [Fact(DisplayName = "The figures of each vCPU are in the result; halts only of one that measures them")]
    public async Task Figures()
    {
        Run run = await StartedAsync(2);
        run.Fakes[0].Count(ExitKind.Io, 0x1000);
        run.Fakes[1].Count(ExitKind.Io, 0x1000);
        run.Fakes[1].Count(ExitKind.Halt, 0x2000);
        var clock = new WakeClock();
        clock.Halt(1_000_000);
        clock.Wake(2_000_000);
        clock.Run(2_030_000);
        run.Fakes[1].WakeClock = clock;
        run.Fakes[0].Stop(new VcpuStop.PoweredOff());
        ExitSummary summary = (await run.ResultAsync()).Summary;
        Assert.Equal([2, 1], summary.Sites.Select(site => site.Exits));
        TimeSpan wake = TimeSpan.FromMicroseconds(30);
        Assert.Equal(
            [new VcpuCost(0, 1, null), new VcpuCost(1, 2, new IdleCost(TimeSpan.FromMicroseconds(1030), 1, wake, wake, wake))],
            summary.PerVcpu.AsEnumerable());
    }

    [Property(DisplayName = "Whatever happens at once on sixteen vCPUs, code changes only while none runs, all is answered, and all threads end", MaxTest = 15)]
    public void Soak(int seed) => SoakAsync(new Random(seed)).GetAwaiter().GetResult();

    private async Task SoakAsync(Random random)
    {
        const int Steps = 60;
        Run run = await StartedAsync(16);
        var caught = new ConcurrentQueue<string>();
        run.Engine.Changing = () =>
        {
            foreach (FakeVcpu vcpu in run.Fakes.Where(vcpu => vcpu.InGuest))
            {
                caught.Enqueue($"vCPU {vcpu.Index} runs while code changes");
            }
        };
        TestProbe user = CreateTestProbe();
        int asked = 0;
        for (int step = 0; step < Steps; step++)
        {
            FakeVcpu vcpu = run.Fakes[random.Next(run.Fakes.Length)];
            switch (random.Next(8))
            {
                case 0:
                    run.Supervisor.Tell(new MachineProtocol.PauseAll(++asked), user);
                    break;
                case 1:
                    run.Supervisor.Tell(new MachineProtocol.ResumeAll(++asked), user);
                    break;
                case 2:
                    run.Supervisor.Tell(new PlanningProtocol.SetPatching(++asked, random.Next(2) == 0), user);
                    break;
                case 3:
                    vcpu.IgnoresPause = true;
                    break;
                case 4:
                    Hurry(vcpu);
                    break;
                case 5:
                    Time.Advance(random.Next(2) == 0 ? Settings.Shipped.QuiesceTimeout : Settings.Shipped.PauseTimeout);
                    break;
                default:
                    run.Heat(Site + ((ulong)random.Next(100) * 0x10));
                    Time.Advance(Settings.Shipped.DetectionInterval);
                    break;
            }
        }

        run.End(random);
        foreach (FakeVcpu vcpu in run.Fakes)
        {
            Hurry(vcpu);
        }

        MachineResult result = await run.ResultAsync();
        Assert.Empty(caught);
        Assert.True(result.ThreadsEnded);
        Assert.Empty(result.Unfinished);
        _ = user.ReceiveN(asked, Limit);
        Assert.False(user.HasMessages);
        Assert.All(run.Fakes, vcpu => Assert.False(vcpu.InGuest));
        Sys.Stop(run.Supervisor);
    }

    // One that was asked to pause meanwhile stands now; to one that was not, this is a signal of nobody's.
    private static void Hurry(FakeVcpu vcpu)
    {
        vcpu.IgnoresPause = false;
        vcpu.Stop(new VcpuStop.Paused());
    }

    private async Task<Run> StartedAsync(int cpus)
    {
        var engine = new FakePatchEngine();
        var machine = new FakeMachine(cpus) { Engine = engine };
        var completion = new TaskCompletionSource<MachineResult>(TaskCreationOptions.RunContinuationsAsynchronously);
        var options = new RunOptions { Sink = new FakeSink() };
        var run = new Run(
            machine, engine, Sys.ActorOf(MachineSupervisor.Props(machine, options, Settings.Shipped, completion)), completion.Task);
        await Eventually(() => machine.Fakes.All(vcpu => vcpu.Runs == 1));
        return run;
    }

    private static async Task<MachineProtocol.Stage> StageAsync(Run run) =>
        (await run.Supervisor.Ask<MachineProtocol.Status>(new MachineProtocol.GetStatus(0), Limit)).Stage;

    private Task Eventually(Func<bool> condition) => AwaitConditionAsync(() => Task.FromResult(condition()), Limit, Often);

    private Task Eventually(Func<Task<bool>> condition) => AwaitConditionAsync(condition, Limit, Often);

    private sealed record Run(FakeMachine Machine, FakePatchEngine Engine, IActorRef Supervisor, Task<MachineResult> Completion)
    {
        public FakeVcpu[] Fakes => Machine.Fakes;

        public Task<MachineResult> ResultAsync() => Completion.WaitAsync(Limit);

        /// <summary>Makes a site hot.</summary>
        public void Heat(ulong site)
        {
            for (int exits = 0; exits < Settings.Shipped.HotThreshold; exits++)
            {
                Fakes[exits % Fakes.Length].Count(ExitKind.Privileged, site);
            }
        }

        /// <summary>Ends the run in one of the ways there are.</summary>
        public void End(Random random)
        {
            FakeVcpu vcpu = Fakes[random.Next(Fakes.Length)];
            switch (random.Next(4))
            {
                case 0:
                    vcpu.Stop(new VcpuStop.PoweredOff());
                    break;
                case 1:
                    vcpu.Stop(new VcpuStop.GuestFailed("triple fault", "registers"));
                    break;
                case 2:
                    vcpu.Throw(new InvalidOperationException("bug"));
                    break;
            }

            // One that is paused does not end by itself.
            Supervisor.Tell(new MachineProtocol.End(new RunCause.EndedByUser("Ctrl-a x", 0)));
        }
    }
}
