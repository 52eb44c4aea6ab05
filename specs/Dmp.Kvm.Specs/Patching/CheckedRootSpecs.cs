using Dmp.Kvm.Specs.Machine;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>CR3 loads that empty the TLB, by an implant, while the guest changes its tables.</summary>
[Collection(KvmMachineCollection.Name)]
public class CheckedRootSpecs
{
    private const int Loads = 2000;
    private const ulong KeepEntries = 1UL << 63;
    private const ulong Site = PatchRig.Code;

    [SkippableFact(DisplayName = "Behind a CR3 load that empties the TLB the guest sees what its tables say, whether the load exited or not")]
    public void Fresh()
    {
        using PatchRig rig = Load();
        int emptying = 0;
        int withoutExit = 0;
        PatchRig.CheckSeeds(Loads, random =>
        {
            int pcid = random.Next(2, 5);
            switch (random.Next(6))
            {
                case 0:
                    rig.MapOwnPage(random.Next(2), random.Next(PatchRig.OwnFrameCount));
                    break;
                case 1:
                    rig.ReplaceOwnTable(random.Next(2));
                    break;
            }

            bool keep = random.Next(4) == 0;
            GuestState state = GuestState.Plain(Site);
            state.General[GuestState.Rax] = PatchRig.Root(pcid) | (keep ? KeepEntries : 0);
            long before = rig.Emulations;
            ulong seen = rig.Run(state)["rsi"];
            if (!keep)
            {
                Assert.Equal(rig.OwnFrame(pcid), seen);
                emptying++;
                withoutExit += rig.Emulations - before == 1 ? 1 : 0;
            }
        });

        // Two thirds of the time nothing changes, but often the PCID does.
        Assert.InRange(withoutExit, emptying / 10, emptying);
    }

    private static void Write(Assembler a)
    {
        a.mov(cr3, rax);
        a.mov(rsi, __qword_ptr[(long)PatchRig.OwnPage]);
        a.nop();
        a.nop();
    }

    private static PatchRig Load()
    {
        byte[] code = PatchRig.Marked(Site, Write, out ulong mark);
        PatchRig rig = new(patching: true, code, [mark]);

        // Only a page that has run can be patched.
        GuestState state = GuestState.Plain(Site);
        state.General[GuestState.Rax] = PatchRig.Root(2);
        _ = rig.Run(state);
        _ = rig.Patch(Site);
        return rig;
    }
}
