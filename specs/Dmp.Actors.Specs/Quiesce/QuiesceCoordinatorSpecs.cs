using System.Collections.Immutable;
using Akka.Actor;
using Akka.TestKit;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Quiesce;
using Dmp.Actors.Vcpus;
using Dmp.Actors.Writing;
using static Dmp.Actors.Quiesce.QuiesceProtocol;

namespace Dmp.Actors.Specs.Quiesce;

/// <summary>The coordinator among probes: the specs say when a vCPU stands, and when the writer is done.</summary>
public sealed class QuiesceCoordinatorSpecs : TestKit
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);

    private readonly TestProbe[] vcpus;
    private readonly TestProbe writer;
    private readonly IActorRef coordinator;
    private readonly StopClock clock;

    public QuiesceCoordinatorSpecs()
        : base(Settings.InVirtualTime)
    {
        vcpus = [CreateTestProbe(), CreateTestProbe(), CreateTestProbe()];
        writer = CreateTestProbe();
        clock = new StopClock(vcpus.Length);
        coordinator = RestartingParent.Of(this, QuiesceCoordinator.Props(
            vcpus.Select((probe, index) => KeyValuePair.Create(index, probe.Ref)).ToImmutableSortedDictionary(),
            writer.Ref,
            clock,
            Settings.Shipped), CreateTestProbe());
    }

    private TestScheduler Time => (TestScheduler)Sys.Scheduler;

    [Fact(DisplayName = "The writer hears nothing before the last vCPU stands, and no vCPU goes on before the writer is done")]
    public async Task One_epoch()
    {
        coordinator.Tell(Ask(1, 0x100, 0x200), TestActor);
        long epoch = await StandAsync(0, 1);
        await SettleAsync();
        Assert.False(writer.HasMessages);
        _ = await StandAsync(2);

        // A batch of patches is one write in one epoch.
        var write = await writer.ExpectMsgAsync<WriterProtocol.Write>(Limit);
        Assert.Equal((epoch, 2), (write.Epoch, write.Patches.Length));
        await SettleAsync();
        Assert.All(vcpus, vcpu => Assert.False(vcpu.HasMessages));

        Written(write);
        await ResumedAsync(0, 1, 2);
        Assert.Equal(1, (await ExpectMsgAsync<Committed>(Limit)).RequestId);
    }

    [Fact(DisplayName = "A vCPU that does not stand in time costs the transaction and nothing else; it goes on as soon as it stands")]
    public async Task Timeout()
    {
        coordinator.Tell(Ask(1, 0x100), TestActor);
        long epoch = await StandAsync(0, 2);
        await vcpus[1].ExpectMsgAsync<VcpuProtocol.Pause>(Limit);
        await SettleAsync();
        Time.Advance(Settings.Shipped.QuiesceTimeout);
        Assert.Equal("vCPU 1 did not stop in time", (await ExpectMsgAsync<Aborted>(Limit)).Reason);
        await ResumedAsync(0, 2);

        coordinator.Tell(new VcpuProtocol.Paused(epoch, 1), vcpus[1]);
        await ResumedAsync(1);
        Assert.False(writer.HasMessages);
    }

    [Fact(DisplayName = "A vCPU that cannot run any more costs the transaction and those behind it at once, and no other vCPU goes on")]
    public async Task Declined()
    {
        coordinator.Tell(Ask(1, 0x100), TestActor);
        coordinator.Tell(Ask(2, 0x200), TestActor);
        long epoch = await StandAsync(0);
        coordinator.Tell(new VcpuProtocol.Refused(epoch, 2, VcpuPhase.Crashed, "it crashed and does not run"), vcpus[2]);
        Assert.Contains("it crashed", (await ExpectMsgAsync<Aborted>(Limit)).Reason, StringComparison.Ordinal);
        Assert.Equal(2, (await ExpectMsgAsync<Aborted>(Limit)).RequestId);

        await vcpus[1].ExpectMsgAsync<VcpuProtocol.Pause>(Limit);
        coordinator.Tell(new VcpuProtocol.Paused(epoch, 1), vcpus[1]);
        coordinator.Tell(Ask(3, 0x300), TestActor);
        Assert.Equal(3, (await ExpectMsgAsync<Aborted>(Limit)).RequestId);
        Assert.False(vcpus[0].HasMessages || vcpus[1].HasMessages);
    }

    [Fact(DisplayName = "A transaction that comes during another waits for its turn, and has an epoch of its own")]
    public async Task Two_transactions()
    {
        coordinator.Tell(Ask(1, 0x100), TestActor);
        coordinator.Tell(Ask(2, 0x200), TestActor);
        _ = await StandAsync(0, 1, 2);
        var first = await writer.ExpectMsgAsync<WriterProtocol.Write>(Limit);
        Written(first);
        await ResumedAsync(0, 1, 2);
        Assert.Equal(1, (await ExpectMsgAsync<Committed>(Limit)).RequestId);
        long epoch = await StandAsync(0, 1, 2);
        Assert.Equal(first.Epoch + 1, epoch);
        Written(await writer.ExpectMsgAsync<WriterProtocol.Write>(Limit));
        Assert.Equal(2, (await ExpectMsgAsync<Committed>(Limit)).RequestId);
    }

    [Fact(DisplayName = "A writer that fails costs the transaction; what it had taken back is said, and the vCPUs go on")]
    public async Task Writer_fails()
    {
        coordinator.Tell(Ask(1, 0x100), TestActor);
        long epoch = await StandAsync(0, 1, 2);
        await writer.ExpectMsgAsync<WriterProtocol.Write>(Limit);
        coordinator.Tell(new WriterProtocol.WriteFailed(epoch, "bug", [FakePatchEngine.PlanOf(0x300)]), writer);
        var aborted = await ExpectMsgAsync<Aborted>(Limit);
        Assert.Equal("the writer failed: bug", aborted.Reason);
        Assert.Equal(0x300UL, Assert.Single(aborted.Reverted).Window);
        await ResumedAsync(0, 1, 2);
    }

    [Fact(DisplayName = "A coordinator that fails while the writer writes lets nobody go before the writer is done")]
    public async Task Fails_while_writing()
    {
        coordinator.Tell(Ask(1, 0x100), TestActor);
        _ = await StandAsync(0, 1, 2);
        var write = await writer.ExpectMsgAsync<WriterProtocol.Write>(Limit);
        await FailAsync();
        Assert.All(vcpus, vcpu => Assert.False(vcpu.HasMessages));

        Written(write);
        await ResumedAsync(0, 1, 2);
        Assert.Equal(1, (await ExpectMsgAsync<Committed>(Limit)).RequestId);
    }

    [Fact(DisplayName = "A coordinator that fails while the vCPUs stop goes on with its epoch, time limit included")]
    public async Task Fails_while_stopping()
    {
        coordinator.Tell(Ask(1, 0x100), TestActor);
        _ = await StandAsync(0);
        await FailAsync();
        _ = await StandAsync(1);
        await SettleAsync();
        Time.Advance(Settings.Shipped.QuiesceTimeout);
        Assert.Equal("vCPU 2 did not stop in time", (await ExpectMsgAsync<Aborted>(Limit)).Reason);
        await ResumedAsync(0, 1);
    }

    [Fact(DisplayName = "An epoch is measured when all have gone on, once, whatever pauses them afterwards")]
    public async Task Measured()
    {
        coordinator.Tell(Ask(1, 0x100), TestActor);
        long epoch = await StandAsync(0, 1, 2);
        Written(await writer.ExpectMsgAsync<WriterProtocol.Write>(Limit));
        await ResumedAsync(0, 1, 2);
        GoOn(epoch, 0, 1);
        Assert.Empty(await TimesAsync());
        GoOn(epoch, 2);
        double measured = Assert.Single(await TimesAsync());

        // The user's pause.
        clock.Stop(1);
        clock.Resume(1);
        Assert.Equal(measured, Assert.Single(await TimesAsync()));
    }

    [Fact(DisplayName = "The stop of a vCPU that somebody else holds as well is not the transaction's: it is not measured")]
    public async Task Held_by_another()
    {
        coordinator.Tell(Ask(1, 0x100), TestActor);
        long epoch = await StandAsync(0, 1, 2);
        Written(await writer.ExpectMsgAsync<WriterProtocol.Write>(Limit));
        await ResumedAsync(0, 1, 2);
        coordinator.Tell(new VcpuProtocol.Resumed(epoch, 1, Runs: false), vcpus[1]);
        GoOn(epoch, 0, 2);
        await SettleAsync();
        clock.Resume(1);
        Assert.Empty(await TimesAsync());
    }

    [Fact(DisplayName = "The stop of a vCPU that stood already is not the transaction's either, and the next epoch is measured again")]
    public async Task Held_before()
    {
        clock.Stop(1);
        coordinator.Tell(Ask(1, 0x100), TestActor);
        long epoch = (await vcpus[1].ExpectMsgAsync<VcpuProtocol.Pause>(Limit)).RequestId;
        coordinator.Tell(new VcpuProtocol.Paused(epoch, 1), vcpus[1]);
        _ = await StandAsync(0, 2);
        Written(await writer.ExpectMsgAsync<WriterProtocol.Write>(Limit));
        await ResumedAsync(0, 1, 2);
        GoOn(epoch, 0, 1, 2);
        Assert.Empty(await TimesAsync());

        coordinator.Tell(Ask(2, 0x200), TestActor);
        epoch = await StandAsync(0, 1, 2);
        Written(await writer.ExpectMsgAsync<WriterProtocol.Write>(Limit));
        await ResumedAsync(0, 1, 2);
        GoOn(epoch, 0, 1, 2);
        _ = Assert.Single(await TimesAsync());
    }

    private static Commit Ask(long id, params IEnumerable<ulong> sites) => new(id, id, [.. sites.Select(FakePatchEngine.PreparedOf)], []);

    private async Task<long> StandAsync(params IEnumerable<int> which)
    {
        long epoch = 0;
        foreach (int vcpu in which)
        {
            epoch = (await vcpus[vcpu].ExpectMsgAsync<VcpuProtocol.Pause>(Limit)).RequestId;
            clock.Stop(vcpu);
            coordinator.Tell(new VcpuProtocol.Paused(epoch, vcpu), vcpus[vcpu]);
        }

        return epoch;
    }

    private void GoOn(long epoch, params IEnumerable<int> which)
    {
        foreach (int vcpu in which)
        {
            coordinator.Tell(new VcpuProtocol.Resumed(epoch, vcpu, Runs: true), vcpus[vcpu]);
            clock.Resume(vcpu);
        }
    }

    private async Task<ImmutableArray<double>> TimesAsync() =>
        (await coordinator.Ask<StopTimes>(new GetStopTimes(0), Limit)).Microseconds;

    private async Task ResumedAsync(params IEnumerable<int> which)
    {
        foreach (int vcpu in which)
        {
            await vcpus[vcpu].ExpectMsgAsync<VcpuProtocol.Resume>(Limit);
        }
    }

    private void Written(WriterProtocol.Write write) => coordinator.Tell(
        new WriterProtocol.Written(write.Epoch, [.. write.Patches.Select(patch => patch.Plan)], [], []), writer);

    /// <summary>Until the coordinator has read all that it was sent.</summary>
    private Task SettleAsync() => coordinator.Ask<StopTimes>(new GetStopTimes(0), Limit);

    private async Task FailAsync()
    {
        await EventFilter.Exception<ActorKilledException>().ExpectOneAsync(Limit, () =>
        {
            coordinator.Tell(Kill.Instance);
            return Task.CompletedTask;
        });
        await SettleAsync();
    }
}
