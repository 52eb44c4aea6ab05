using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Specs.Machine;
using Iced.Intel;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>The end of a halt: the interrupt is taken at once, and its handler returns behind the HLT.</summary>
[Collection(KvmMachineCollection.Name)]
public class HaltSpecs
{
    private const ulong Site = PatchRig.Code;
    private const ulong BehindHalt = Site + 2;
    private const int ImplantRoom = 8;
    private static readonly TimeSpan Patience = TimeSpan.FromMinutes(1);

    [SkippableTheory(DisplayName = "An interrupt that comes during a halt behind an STI is taken before the next instruction")]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Interrupted(bool patched)
    {
        using PatchRig rig = Load(patched);
        Task<GuestResult> run = Task.Run(() => rig.Run(Plain()));
        AwaitHalt(rig);

        rig.Interrupt();

        ShouldBeInHandler(rig, await run.WaitAsync(Patience));
    }

    [SkippableTheory(DisplayName = "An interrupt that comes while a halted vCPU is paused is taken behind the HLT, not before it")]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Paused(bool patched)
    {
        using PatchRig rig = Load(patched);
        Task<VcpuStop> run = Task.Run(() => rig.RunToEnd(Plain()));
        AwaitHalt(rig);
        rig.Vcpu.RequestPause();
        Assert.IsType<VcpuStop.Paused>(await run.WaitAsync(Patience));

        rig.Interrupt();

        ShouldBeInHandler(rig, rig.RunOn());
    }

    private static void Write(Assembler a)
    {
        a.sti();
        a.hlt();
        for (int padding = 0; padding < ImplantRoom; padding++)
        {
            a.nop();
        }
    }

    private static PatchRig Load(bool patched)
    {
        byte[] code = PatchRig.Marked(Site, Write, out ulong mark);
        PatchRig rig = new(patched, code, [mark]);
        if (patched)
        {
            _ = rig.Run(GuestState.Plain(BehindHalt)); // Only a page that has run can be patched.
            _ = rig.Patch(Site);
        }

        return rig;
    }

    private static GuestState Plain() => GuestState.Plain(Site);

    private static void AwaitHalt(PatchRig rig) =>
        Assert.True(SpinWait.SpinUntil(() => rig.Vcpu.Exits.Total(ExitKind.Halt) != 0, Patience), "the guest did not halt");

    private static void ShouldBeInHandler(PatchRig rig, GuestResult result)
    {
        Assert.Equal(PatchRig.Handler(PatchRig.InterruptVector), result["rip"]);
        Assert.Equal(BehindHalt, rig.Word(result["rsp"]));
    }
}
