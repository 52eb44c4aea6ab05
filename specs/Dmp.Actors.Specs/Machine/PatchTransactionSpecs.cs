using Akka.Actor;
using Akka.TestKit;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Journal;
using Dmp.Actors.Machine;
using Dmp.Actors.Planning;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Specs.Machine;

/// <summary>Patch transactions in whole runs: what else goes on in a machine at the same time.</summary>
public sealed class PatchTransactionSpecs : TestKit
{
    private const ulong Site = FakePatchEngine.Base + 0x100;
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan Often = TimeSpan.FromMilliseconds(5);

    private readonly FakePatchEngine engine = new();
    private readonly FakeMachine machine;
    private readonly TaskCompletionSource<MachineResult> completion = new(TaskCreationOptions.RunContinuationsAsynchronously);

    public PatchTransactionSpecs()
        : base(Settings.InVirtualTime) => machine = new FakeMachine(cpus: 2) { Engine = engine };

    private TestScheduler Time => (TestScheduler)Sys.Scheduler;

    [Fact(DisplayName = "A site that exits often is patched while all vCPUs stand, and all go on")]
    public async Task Patch()
    {
        await StartedAsync();
        await HeatAsync(() => engine.InForce.ContainsKey(Site));
        await Eventually(() => machine.Fakes.All(vcpu => vcpu.Runs == 2));
        MachineResult result = await EndAsync();
        Assert.Equal((1, 0), (result.Patches?.Applied, result.Patches?.Aborted));
        Assert.Empty(result.Unfinished);
    }

    [Fact(DisplayName = "At the end each patch in force is compared with the guest's code and with the journal, and the report has the figures")]
    public async Task Verified()
    {
        await StartedAsync();
        await HeatAsync(() => engine.InForce.ContainsKey(Site));
        MachineResult result = await EndAsync();
        Assert.Equal((1, 0), (result.Patches?.Verified, result.Patches?.Mismatched));
    }

    [Fact(DisplayName = "A patch whose bytes are not in the guest's code at the end, or that the journal does not have, is named in the log")]
    public async Task Mismatched()
    {
        await StartedAsync();
        await HeatAsync(() => engine.InForce.ContainsKey(Site));
        ulong unknown = Site + 0x100;
        engine.InForce[unknown] = FakePatchEngine.PlanOf(unknown);
        engine.Differences.Enqueue($"0x{Site:x}: 00 instead of E9");
        MachineResult? result = null;
        await EventFilter.Warning(contains: $"0x{Site:x}: 00 instead of E9").ExpectOneAsync(Limit, async () =>
            await EventFilter.Warning(contains: $"0x{unknown:x}: in force, but not in the journal").ExpectOneAsync(Limit, async () =>
                result = await EndAsync()));
        Assert.Equal((0, 2), (result?.Patches?.Verified, result?.Patches?.Mismatched));
    }

    [Fact(DisplayName = "A user's pause during a transaction is answered, and outlasts the transaction")]
    public async Task Pause_during_a_transaction()
    {
        IActorRef supervisor = await StartedAsync();
        machine.Fakes[1].IgnoresPause = true;
        await HeatAsync(() => machine.Events.Contains("vcpu 0 Paused"));
        supervisor.Tell(new MachineProtocol.PauseAll(1), TestActor);
        await StageAsync(supervisor, MachineProtocol.Stage.Pausing);
        machine.Fakes[1].Stop(new VcpuStop.Paused());
        await ExpectMsgAsync(new MachineProtocol.AllPaused(1), Limit);
        await Eventually(() => engine.InForce.ContainsKey(Site));

        // The planner has the transaction behind it when it has answered.
        supervisor.Tell(new PlanningProtocol.SetPatching(2, true), TestActor);
        await ExpectMsgAsync(new PlanningProtocol.PatchingSet(2, true, 0), Limit);
        Assert.All(machine.Fakes, vcpu => Assert.Equal(1, vcpu.Runs));
        supervisor.Tell(new MachineProtocol.ResumeAll(3), TestActor);
        await ExpectMsgAsync(new MachineProtocol.AllResumed(3), Limit);
        await Eventually(() => machine.Fakes.All(vcpu => vcpu.Runs == 2));
    }

    [Fact(DisplayName = "The end of a run waits for the transaction under way, and that for no longer than its limit")]
    public async Task End_during_a_transaction()
    {
        IActorRef supervisor = await StartedAsync();
        machine.Fakes[1].IgnoresPause = true;
        await HeatAsync(() => machine.Events.Contains("vcpu 0 Paused"));
        supervisor.Tell(new MachineProtocol.End(new RunCause.EndedByUser("Ctrl-a x", 0)));
        await StageAsync(supervisor, MachineProtocol.Stage.Ending);
        Assert.False(completion.Task.IsCompleted);
        Time.Advance(Settings.Shipped.QuiesceTimeout);

        // Let go, and then stopped for good.
        await Eventually(() => machine.Fakes[0].Runs == 2);
        machine.Fakes[1].IgnoresPause = false;
        machine.Fakes[1].Stop(new VcpuStop.Paused());
        MachineResult result = await completion.Task.WaitAsync(Limit);
        Assert.Equal((0, 1), (result.Patches?.Applied, result.Patches?.Aborted));
        Assert.Empty(result.Unfinished);
        Assert.Empty(engine.InForce);
    }

    [Fact(DisplayName = "A writer that fails over a batch is restarted; the guest goes on with its own bytes")]
    public async Task Writer_failure()
    {
        await StartedAsync();
        engine.ThrowAtApply.Add(Site);
        await HeatAsync(() => machine.Fakes.All(vcpu => vcpu.Runs == 2));
        Assert.Empty(engine.InForce);
        Assert.Equal(1, (await EndAsync()).Patches?.Aborted);
    }

    [Fact(DisplayName = "Half a patch that cannot be taken back ends the machine; no vCPU runs on it")]
    public async Task Damaged_code()
    {
        await StartedAsync();
        engine.ThrowAtApply.Add(Site);
        engine.ThrowAtRevert.Add(Site);
        await HeatAsync(() => engine.Calls.Contains($"revert {Site:x}"));
        await Eventually(() =>
        {
            // The transaction never ends: the supervisor waits for it until its limit.
            Time.Advance(TimeSpan.FromMilliseconds(20));
            return completion.Task.IsCompleted;
        });
        MachineResult result = await completion.Task;
        Assert.Contains("cannot be taken back", Assert.IsType<RunOutcome.VmmFailed>(result.Outcome).Detail, StringComparison.Ordinal);
        Assert.All(machine.Fakes, vcpu => Assert.Equal(1, vcpu.Runs));
        Assert.Equal(2, result.Vcpus.Length);
    }

    [Fact(DisplayName = "Without its journal the guest runs on unpatched, and the log says so once")]
    public async Task No_journal()
    {
        await EventFilter.Warning(contains: "/proc/nowhere").ExpectOneAsync(Limit, async () =>
        {
            await StartedAsync(JournalConnection.Parse("/proc/nowhere/patches.db"));
            machine.Fakes[0].Count(ExitKind.Privileged, Site);
            for (int exits = 0; exits < 100; exits++)
            {
                machine.Fakes[0].Count(ExitKind.Privileged, Site);
            }

            for (int ticks = 0; ticks < 5; ticks++)
            {
                Time.Advance(Settings.Shipped.DetectionInterval);
            }
        });
        Assert.Equal(0, (await EndAsync()).Patches?.Applied);
        Assert.Empty(engine.Calls);
        Assert.All(machine.Fakes, vcpu => Assert.Equal(1, vcpu.Runs));
    }

    private async Task<IActorRef> StartedAsync(JournalConnection? journal = null)
    {
        var options = new RunOptions { Sink = new FakeSink(), Journal = journal };
        IActorRef supervisor = Sys.ActorOf(MachineSupervisor.Props(machine, options, Settings.Shipped, completion));
        await StageAsync(supervisor, MachineProtocol.Stage.Running);
        await Eventually(() => machine.Fakes.All(vcpu => vcpu.Runs == 1));
        return supervisor;
    }

    private Task StageAsync(IActorRef supervisor, MachineProtocol.Stage stage) => Eventually(async () =>
        (await supervisor.Ask<MachineProtocol.Status>(new MachineProtocol.GetStatus(0), Limit)).Stage == stage);

    /// <summary>Makes the site hot, has hot sites looked for once, and waits for what follows from that.</summary>
    private async Task HeatAsync(Func<bool> until)
    {
        for (int exits = 0; exits < Settings.Shipped.HotThreshold; exits++)
        {
            machine.Fakes[0].Count(ExitKind.Privileged, Site);
        }

        Time.Advance(Settings.Shipped.DetectionInterval);
        await Eventually(until);
    }

    private async Task<MachineResult> EndAsync()
    {
        machine.Fakes[0].Stop(new VcpuStop.PoweredOff());
        return await completion.Task.WaitAsync(Limit);
    }

    private Task Eventually(Func<bool> condition) => AwaitConditionAsync(() => Task.FromResult(condition()), Limit, Often);

    private Task Eventually(Func<Task<bool>> condition) => AwaitConditionAsync(condition, Limit, Often);
}
