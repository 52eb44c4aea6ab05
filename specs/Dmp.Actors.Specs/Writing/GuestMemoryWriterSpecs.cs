using Akka.Actor;
using Akka.TestKit;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Writing;
using Dmp.Kvm.Patching;
using static Dmp.Actors.Writing.WriterProtocol;

namespace Dmp.Actors.Specs.Writing;

public sealed class GuestMemoryWriterSpecs : TestKit
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);

    private readonly FakePatchEngine engine = new();
    private readonly IActorRef writer;

    public GuestMemoryWriterSpecs()
        : base(Settings.InVirtualTime) => writer = RestartingParent.Of(this, GuestMemoryWriter.Props(engine), CreateTestProbe());

    [Fact(DisplayName = "What is taken back goes before what is applied, in the order it was asked for")]
    public async Task Order()
    {
        engine.InForce[0x300] = FakePatchEngine.PlanOf(0x300);
        writer.Tell(new Write(7, [Patch(0x100), Patch(0x200)], [FakePatchEngine.PlanOf(0x300)]), TestActor);
        var written = await ExpectMsgAsync<Written>(Limit);
        Assert.Equal(["revert 300", "apply 100", "apply 200"], engine.Calls);
        Assert.Equal([0x100UL, 0x200], written.Applied.Select(plan => plan.Window));
        Assert.Equal([0x300UL], written.Reverted.Select(plan => plan.Window));
        Assert.Equal(7, written.Epoch);
    }

    [Fact(DisplayName = "A site whose bytes have changed, or in whose window a vCPU stands, keeps its bytes; the others are patched")]
    public async Task One_does_not_fit()
    {
        engine.Changed[0x100] = "vCPU 1 stands in the window";
        writer.Tell(new Write(1, [Patch(0x100), Patch(0x200)], []), TestActor);
        var written = await ExpectMsgAsync<Written>(Limit);
        Assert.Equal("vCPU 1 stands in the window", Assert.Single(written.Failed).Reason);
        Assert.Equal([0x200UL], engine.InForce.Keys);
    }

    [Fact(DisplayName = "A batch that fails in the middle leaves none of its patches behind, and the next one is written as ever")]
    public async Task Failure_in_the_middle()
    {
        engine.ThrowAtApply.Add(0x200);
        await FailAsync<InvalidOperationException>(new Write(1, [Patch(0x100), Patch(0x200), Patch(0x300)], []));
        var failed = await ExpectMsgAsync<WriteFailed>(Limit);
        Assert.Equal((1, "InvalidOperationException: injected into the engine"), (failed.Epoch, failed.Reason));
        Assert.Empty(engine.InForce);

        writer.Tell(new Write(2, [Patch(0x300)], []), TestActor);
        Assert.Equal(2, (await ExpectMsgAsync<Written>(Limit)).Epoch);
    }

    [Fact(DisplayName = "What a failing batch had taken back stays taken back, and is named")]
    public async Task Failure_after_reverts()
    {
        engine.InForce[0x300] = FakePatchEngine.PlanOf(0x300);
        engine.ThrowAtApply.Add(0x100);
        await FailAsync<InvalidOperationException>(new Write(1, [Patch(0x100)], [FakePatchEngine.PlanOf(0x300)]));
        Assert.Equal([0x300UL], (await ExpectMsgAsync<WriteFailed>(Limit)).Reverted.Select(plan => plan.Window));
    }

    [Fact(DisplayName = "Half a batch that cannot be taken back is never reported as an end: the vCPUs must not go on; the rest is tried")]
    public async Task Failure_of_the_way_back()
    {
        engine.ThrowAtApply.Add(0x200);
        engine.ThrowAtRevert.Add(0x100);
        await FailAsync<GuestCodeDamagedException>(new Write(1, [Patch(0x100), Patch(0x200)], []));

        // The next answer is the next write's.
        writer.Tell(new Write(2, [], []), TestActor);
        Assert.Equal(2, (await ExpectMsgAsync<Written>(Limit)).Epoch);
        Assert.Equal([0x100UL], engine.InForce.Keys);
    }

    [Fact(DisplayName = "Of several patches at one address, made for different bytes, all are taken back at once and all are named")]
    public async Task Variants()
    {
        PatchPlan plan = FakePatchEngine.PlanOf(0x100);
        engine.InForce[0x100] = plan;
        writer.Tell(new Write(1, [], [plan, plan with { Original = [1, 2, 3, 4, 5] }, FakePatchEngine.PlanOf(0x900)]), TestActor);
        Assert.Equal([0x100UL, 0x100], (await ExpectMsgAsync<Written>(Limit)).Reverted.Select(reverted => reverted.Window));
        Assert.Equal(["revert 100", "revert 900"], engine.Calls);
    }

    private static PreparedPatch Patch(ulong site) => FakePatchEngine.PreparedOf(site);

    private Task FailAsync<T>(Write write)
        where T : Exception => EventFilter.Exception<T>().ExpectOneAsync(Limit, () =>
        {
            writer.Tell(write, TestActor);
            return Task.CompletedTask;
        });
}
