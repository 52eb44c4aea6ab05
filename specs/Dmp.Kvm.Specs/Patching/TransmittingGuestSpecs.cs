using Dmp.Kvm.Devices;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Specs.Machine;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>A guest whose port instructions are implants: what it wrote is on the console, whatever becomes of it.</summary>
[Collection(KvmMachineCollection.Name)]
public class TransmittingGuestSpecs
{
    private const int Many = 10 * DevicePage.RingEntries;
    private const int Rsi = 6;
    private const int LessThanRing = DevicePage.RingEntries / 2;

    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    [SkippableFact(DisplayName = "Much more than the ring holds, written without another exit, is on the console in order when the run ends")]
    public void Much()
    {
        using PatchRig rig = Load(a => a.DebugExit(1));
        long before = rig.Emulations;

        Assert.IsType<VcpuStop.DebugExit>(rig.RunToEnd(Writing(Many)));

        Assert.Equal(Expected(Many), Output(rig));

        // The ring was full every so often, and there is the end.
        Assert.InRange(rig.Emulations - before, 2, (Many / DevicePage.RingEntries) + 1);
    }

    [SkippableFact(DisplayName = "The last words of a guest that cannot go on are on the console")]
    public void Last_words()
    {
        using PatchRig rig = Load(a => a.ud2());
        rig.State.IdtLimit = 0;

        Assert.IsType<VcpuStop.GuestFailed>(rig.RunToEnd(Writing(LessThanRing)));

        Assert.Equal(Expected(LessThanRing), Output(rig));
    }

    [SkippableFact(DisplayName = "What a guest wrote that never exits again is seen all the same")]
    public async Task Spinning()
    {
        using PatchRig rig = Load(a =>
        {
            Label forever = a.CreateLabel();
            a.Label(ref forever);
            a.pause();
            a.jmp(forever);
        });
        Task<VcpuStop> run = Task.Run(() => rig.RunToEnd(Writing(LessThanRing)));
        List<byte> seen = [];
        byte[] buffer = new byte[LessThanRing];
        while (seen.Count < LessThanRing && rig.Machine.Console.WaitForOutput(Patience))
        {
            seen.AddRange(buffer[..rig.Machine.Console.TakeOutput(buffer)]);
        }

        rig.Vcpu.RequestPause();
        Assert.IsType<VcpuStop.Paused>(await run);
        Assert.Equal(Expected(LessThanRing), seen);
    }

    /// <summary>Code that writes the numbers from RCX down to 1, and then ends in some way.</summary>
    private static PatchRig Load(Action<Assembler> end)
    {
        byte[] code = TinyMultiboot.Assemble(64, PatchRig.Code, a =>
        {
            Label next = a.CreateLabel();
            a.Label(ref next);
            a.mov(eax, ecx);
            a.@out(dx, al);
            a.nop();
            a.nop();
            a.nop();
            a.nop();
            a.dec(ecx);
            a.jne(next);

            // The first time everything is as it was: this makes the page known.
            a.test(esi, esi);
            Label begun = a.CreateLabel();
            a.jne(begun);
            a.clts();
            a.Label(ref begun);
            a.nop();
            end(a);
        });
        const byte Out = 0xEE;
        ulong site = PatchRig.Code + (ulong)code.AsSpan().IndexOf(Out);
        ulong first = PatchRig.Code + (ulong)code.AsSpan().IndexOf(PatchRig.Mark);
        PatchRig rig = new(patching: true, code, [first]);
        GuestState warm = Writing(1);
        warm.General[Rsi] = 0;
        _ = rig.Run(warm);
        _ = rig.Patch(site);
        _ = Output(rig);
        return rig;
    }

    private static GuestState Writing(int count)
    {
        GuestState state = GuestState.Plain(PatchRig.Code);
        state.General[GuestState.Rcx] = (ulong)count;
        state.General[GuestState.Rdx] = DeviceLayout.Serial;
        state.General[Rsi] = 1;
        return state;
    }

    private static byte[] Expected(int count) => [.. Enumerable.Range(0, count).Select(number => (byte)(count - number))];

    private static byte[] Output(PatchRig rig)
    {
        byte[] buffer = new byte[2 * Many];
        return buffer[..rig.Machine.Console.TakeOutput(buffer)];
    }
}
