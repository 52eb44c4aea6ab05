using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Specs.Machine;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>Faults of the guest in the middle of an implant.</summary>
[Collection(KvmMachineCollection.Name)]
public class TemplateFaultSpecs
{
    private const ulong NonCanonical = 0x0001_2345_6789_0000;
    private const ulong Target = TemplateCase.Landing;
    private const int RoomInStack = 0x40;

    private const ulong Flags = 0x8D7;

    [SkippableTheory(DisplayName = "A stack that is not there faults at the guest's instruction, with its registers as before")]
    [InlineData("pushf", PatchRig.Stack, ExceptionVector.PageFault)]
    [InlineData("pushf", PatchRig.Stack + 4, ExceptionVector.PageFault)]
    [InlineData("pushf", PatchRig.Stack - 0x800, ExceptionVector.PageFault)]
    [InlineData("pushf", NonCanonical, ExceptionVector.Stack)]
    [InlineData("popf", PatchRig.Stack + PatchRig.StackBytes, ExceptionVector.PageFault)]
    [InlineData("popf", PatchRig.Stack + PatchRig.StackBytes - 3, ExceptionVector.PageFault)]
    [InlineData("popf", NonCanonical, ExceptionVector.Stack)]
    [InlineData("iret", PatchRig.Stack + PatchRig.StackBytes, ExceptionVector.PageFault)]
    [InlineData("iret", PatchRig.Stack + PatchRig.StackBytes - 8, ExceptionVector.PageFault)]
    [InlineData("iret", PatchRig.Stack + PatchRig.StackBytes - 16, ExceptionVector.PageFault)]
    [InlineData("iret", PatchRig.Stack + PatchRig.StackBytes - 33, ExceptionVector.PageFault)]
    [InlineData("iret", PatchRig.Stack - 32, ExceptionVector.PageFault)]
    [InlineData("iret", NonCanonical, ExceptionVector.Stack)]
    public void No_stack(string template, ulong stack, ExceptionVector vector) => Faults(template, vector, state =>
        state.General[GuestState.Rsp] = stack);

    [SkippableTheory(DisplayName = "A return to nowhere faults at the IRETQ, with the frame still there")]
    [InlineData(NonCanonical, 0x10, 0x18, ExceptionVector.GeneralProtection)]
    [InlineData(Target, 0x00, 0x18, ExceptionVector.GeneralProtection)]
    [InlineData(Target, 0x18, 0x18, ExceptionVector.GeneralProtection)]
    [InlineData(Target, 0x1F0, 0x18, ExceptionVector.GeneralProtection)]
    [InlineData(Target, 0x10, 0x2B, ExceptionVector.GeneralProtection)]
    [InlineData(Target, 0x10, 0x10, ExceptionVector.GeneralProtection)]
    [InlineData(PatchRig.User, 0x33, 0x18, ExceptionVector.GeneralProtection)]
    [InlineData(PatchRig.User, 0x33, 0x00, ExceptionVector.GeneralProtection)]
    [InlineData(NonCanonical, 0x33, 0x2B, ExceptionVector.GeneralProtection)]
    [InlineData(PatchRig.User, 0x30, 0x2B, ExceptionVector.GeneralProtection)]
    public void Bad_frame(ulong rip, ulong code, ulong stack, ExceptionVector vector) => Faults("iret", vector, state => state.Memory.AddRange(
    [
        (state.General[GuestState.Rsp], rip),
        (state.General[GuestState.Rsp] + 8, code),
        (state.General[GuestState.Rsp] + 16, 0x202),
        (state.General[GuestState.Rsp] + 24, PatchRig.Stack + 0x400),
        (state.General[GuestState.Rsp] + 32, stack),
    ]));

    [SkippableTheory(DisplayName = "A return to memory that is not there faults at the target, with the frame gone")]
    [InlineData(0xFFFF_FFFF_8060_0000, 0x10, 0x18)]
    [InlineData(PatchRig.User + 0x10_0000, 0x33, 0x2B)]
    public void Bad_target(ulong rip, ulong code, ulong stack)
    {
        const ulong NewStack = PatchRig.Stack + 0x400;
        Both("iret", state => state.Memory.AddRange(
        [
            (state.General[GuestState.Rsp], rip),
            (state.General[GuestState.Rsp] + 8, code),
            (state.General[GuestState.Rsp] + 16, 0x202),
            (state.General[GuestState.Rsp] + 24, NewStack),
            (state.General[GuestState.Rsp] + 32, stack),
        ]), (_, result) =>
        {
            Assert.Equal(PatchRig.Handler((int)ExceptionVector.PageFault), result["rip"]);
            Assert.Equal(rip, result.FaultedAt);
            Assert.Equal(rip, result["cr2"]);
        });
    }

    private static void Faults(string template, ExceptionVector vector, Action<GuestState> arrange) =>
        Both(template, arrange, (state, result) =>
        {
            Assert.Equal(PatchRig.Handler((int)vector), result["rip"]);
            Assert.Equal(state.Rip, result.FaultedAt);
            for (int index = 0; index < GuestState.GeneralRegisters; index++)
            {
                if (index != GuestState.Rsp)
                {
                    Assert.Equal(state.General[index], result[GuestState.Names[index]]);
                }
            }

            const ulong Pushed = (ulong)Rflags.UserChangeable;
            Assert.Equal(Flags & Pushed, result.FlagsAtFault & Pushed);
            Assert.Equal(state.General[GuestState.Rsp], result.StackAtFault);
        });

    private static void Both(string template, Action<GuestState> arrange, Action<GuestState, GuestResult> check)
    {
        TemplatePieces pieces = new(TemplateCase.Of(template));
        using PatchRig trapped = pieces.Load(patching: false);
        using PatchRig patched = pieces.Load(patching: true);
        _ = patched.Patch(pieces.Sites[0]);
        GuestState state = GuestState.Any(new Random(1), pieces.Sites[0]);
        state.Pending = false;
        state.InterruptFlag = false;
        state.Flags = Flags;
        state.General[GuestState.Rsp] = PatchRig.Stack + RoomInStack;
        arrange(state);
        GuestResult original = trapped.Run(state);
        check(state, original);
        GuestResult implant = patched.Run(state);
        check(state, implant);
        string difference = original.Difference(implant, TemplateCase.Of(template).Dead(state, original));
        Assert.True(difference.Length == 0, difference);
    }
}
