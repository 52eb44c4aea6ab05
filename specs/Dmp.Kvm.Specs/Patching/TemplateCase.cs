using System.Collections.Immutable;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Patching;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>Instructions that a template replaces, and the states in which it has something to decide.</summary>
internal sealed class TemplateCase
{
    /// <summary>Where IRETQ goes when all is well; a mark.</summary>
    internal const ulong Landing = PatchRig.Code + 0x3000;

    private const ushort UserCode = 0x33;
    private const ushort UserData = 0x2B;
    private const ushort CompatibilityCode = 0x23;
    private const ulong NonCanonical = 0x0001_2345_6789_0000;

    /// <summary>The template's name.</summary>
    internal required string Template { get; init; }

    /// <summary>Each a piece of code of its own.</summary>
    internal required ImmutableArray<Action<Assembler>> Instructions { get; init; }

    /// <summary>Makes a state one that matters; the second argument is drawn from.</summary>
    internal Action<GuestState, Random> Arrange { get; init; } = (_, _) => { };

    /// <summary>Words of guest memory that the template may change where the original does not.</summary>
    internal Func<GuestState, GuestResult, IReadOnlyCollection<ulong>> Dead { get; init; } = (_, _) => [];

    /// <summary>Control does not come out behind the instruction.</summary>
    internal bool Leaves { get; init; }

    /// <summary>A new template needs an entry here.</summary>
    internal static ImmutableArray<TemplateCase> All { get; } =
    [
        new() { Template = "cli", Instructions = [a => a.cli()] },
        new() { Template = "sti", Instructions = [a => a.sti()] },
        new() { Template = "pushf", Instructions = [a => a.pushfq()] },
        new() { Template = "popf", Instructions = [a => a.popfq()], Arrange = PutFlagsOnStack },
        new() { Template = "swapgs", Instructions = [a => a.swapgs()] },
        new()
        {
            Template = "read-control",
            Instructions = [.. Registers64().SelectMany(r => new Action<Assembler>[] { a => a.mov(r, cr2), a => a.mov(r, cr3) })],
        },
        new()
        {
            Template = "read-selector",
            Instructions =
            [
                a => a.mov(eax, cs), a => a.mov(ecx, ss), a => a.mov(r9d, cs), a => a.mov(ebp, ss), a => a.mov(r15, cs),
                a => a.mov(rdx, ss), a => a.mov(ax, cs), a => a.mov(r12w, ss), a => a.mov(cx, ss), a => a.mov(rax, ss),
            ],
            Arrange = (state, random) =>
            {
                // Any that kernel code can have: one with the compatibility code's RPL would make it 32-bit code.
                const int Privilege = 3;
                state.CodeSelector = (ushort)(random.Next(0x10000) & ~Privilege);
                state.StackSelector = (ushort)random.Next(0x10000);
            },
        },
        new()
        {
            Template = "iret",
            Instructions = [a => a.iretq()],
            Arrange = PutFrameOnStack,
            Leaves = true,

            // Of a frame that was popped nobody reads the selectors again: they lie below the stack pointer's life.
            Dead = (state, result) => result.FaultedAt == state.Rip
                ? []
                : [state.General[GuestState.Rsp] + 8, state.General[GuestState.Rsp] + 32],
        },
        new() { Template = "cpuid", Instructions = [a => a.cpuid()], Arrange = PutQuestionInRegisters },
        new() { Template = "rdmsr", Instructions = [a => a.rdmsr()], Arrange = PutMsrInRegisters },
        new() { Template = "wrmsr", Instructions = [a => a.wrmsr()], Arrange = PutMsrInRegisters },
        new() { Template = "sysret", Instructions = [a => a.sysretq()], Arrange = PutReturnInRegisters, Leaves = true },
        new() { Template = "port-out", Instructions = [a => a.@out(dx, al)], Arrange = ChoosePort },
        new() { Template = "port-in", Instructions = [a => a.@in(al, dx)], Arrange = ChoosePort },
        new()
        {
            Template = "write-root",
            Instructions =
            [
                .. new[] { rax, rcx, rdx, rbx, rdi, r8, r11, r15 }.Select(r => (Action<Assembler>)(a =>
                {
                    a.mov(cr3, r);
                    a.mov(rsi, __qword_ptr[(long)PatchRig.OwnPage]);
                })),
            ],
            Arrange = (state, random) =>
            {
                const ulong KeepEntries = 1UL << 63;

                // All registers, for any of them may be the one; RSP cannot be.
                for (int index = 0; index < GuestState.GeneralRegisters; index++)
                {
                    if (index != GuestState.Rsp)
                    {
                        state.General[index] = PatchRig.Root(random.Next(10)) | (random.Next(4) == 0 ? 0 : KeepEntries);
                    }
                }
            },
        },
    ];

    internal static TemplateCase Of(string template) => All.Single(one => one.Template == template);

    private static IEnumerable<AssemblerRegister64> Registers64() =>
        [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];

    private static void PutFlagsOnStack(GuestState state, Random random) =>
        state.Memory.Add((state.General[GuestState.Rsp], GuestState.FlagsImage(random)));

    private static void PutFrameOnStack(GuestState state, Random random)
    {
        // A processor that single-steps an IRETQ traps behind it; the emulated one and the gate do not. With NT set IRETQ faults, which
        // an implant finds out only after it has changed the frame; no kernel runs with it, for every entry clears it.
        state.Flags &= ~(ulong)(Rflags.Trap | Rflags.NestedTask);
        state.Pending = random.Next(3) == 0;
        state.NmiBlocked = random.Next(6) == 0;
        bool user = random.Next(3) == 0;
        ulong rip = Often(random, user ? PatchRig.User : Landing, NonCanonical, PatchRig.Code - 0x1000, user ? Landing : PatchRig.User);
        ulong code = Often(random, user ? UserCode : PatchRig.KernelCode, 0, UserCode, CompatibilityCode, 0x78, 0x1F0, PatchRig.KernelData, 0x11);
        ulong stack = Often(random, user ? UserData : PatchRig.KernelData, 0, UserData, PatchRig.KernelCode, 0x78, 0x1F3, 0x19);
        state.StackSelector = random.Next(8) == 0 ? (ushort)0 : PatchRig.KernelData;
        ulong dirt = random.Next(10) == 0 ? GuestState.Word(random) << 16 : 0;
        ulong frame = state.General[GuestState.Rsp];
        state.Memory.AddRange(
        [
            (frame, rip),
            (frame + 8, code | (random.Next(2) == 0 ? dirt : 0)),
            (frame + 16, GuestState.FlagsImage(random)),
            (frame + 24, PatchRig.Stack + (ulong)random.Next(0x100, PatchRig.StackBytes - 0x100)),
            (frame + 32, stack | (random.Next(2) == 0 ? dirt : 0)),
        ]);
    }

    private static void PutReturnInRegisters(GuestState state, Random random)
    {
        const ulong LinuxStar = 0x0023_0010UL << 32;
        state.Pending = random.Next(3) == 0;
        state.General[GuestState.Rcx] = Often(random, PatchRig.User, NonCanonical, Landing, PatchRig.User + 0x1000, 0x0000_8000_0000_0000);
        state.General[GuestState.R11] = GuestState.FlagsImage(random);
        state.Star = Often(random, LinuxStar, 0x0013_0010UL << 32, 0x0020_0010UL << 32);
    }

    private static void ChoosePort(GuestState state, Random random)
    {
        const ulong PortMask = 0xFFFF;
        const ushort OtherSerialPort = 0x2F8;
        const ushort Nobodys = 0x1234;
        ushort any = (ushort)(DeviceLayout.Serial + random.Next(Uart16550.PortCount));
        ulong port = Often(
            random,
            random.Next(2) == 0 ? DeviceLayout.Serial : any,
            OtherSerialPort,
            DeviceLayout.Serial - 1,
            DeviceLayout.Serial + Uart16550.PortCount,
            DeviceLayout.PostCode,
            Nobodys);
        state.General[GuestState.Rdx] = (state.General[GuestState.Rdx] & ~PortMask) | port;
        Maybe(UartRegister.Mcr, 0x03, 0x0B, 0x10, (byte)random.Next(0x20));
        Maybe(UartRegister.IirFcr, 0x01, 0x07, 0xC1);
        Maybe(UartRegister.IerDlm, 0x01, 0x02, 0x03, (byte)random.Next(0x10));
        Maybe(UartRegister.Scr, (byte)random.Next(0x100));
        Maybe(UartRegister.IirFcr, [null]);
        Maybe(UartRegister.RbrThrDll, (byte)'x', null);
        Maybe(UartRegister.Lcr, 0x03, 0x80);
        state.Typed = random.Next(3);

        void Maybe(UartRegister register, params ReadOnlySpan<byte?> values)
        {
            if (random.Next(3) == 0)
            {
                state.Ports.Add(((ushort)(DeviceLayout.Serial + (int)register), values[random.Next(values.Length)]));
            }
        }
    }

    private static void PutQuestionInRegisters(GuestState state, Random random)
    {
        ulong[] ranges = [0, 0, 0x4000_0000, 0x8000_0000];
        ulong dirt = random.Next(4) == 0 ? GuestState.Word(random) << 32 : 0;
        state.General[GuestState.Rax] = Often(
            random, ranges[random.Next(ranges.Length)] + (ulong)random.Next(0x22), 0xD, 0xB, 7, 1, GuestState.Word(random)) | dirt;
        state.General[GuestState.Rcx] = Often(random, (ulong)random.Next(10), GuestState.Word(random)) | dirt;
        state.XSave = random.Next(2) == 0;
        state.Xcr0 = 1 | (ulong)random.Next(0x100);
    }

    private static void PutMsrInRegisters(GuestState state, Random random)
    {
        const ulong EndOfInterrupt = 0x80B;
        const ulong FsBase = 0xC000_0100;
        ulong[] usual = [EndOfInterrupt, FsBase, FsBase + 1, FsBase + 2];
        ulong dirt = random.Next(4) == 0 ? GuestState.Word(random) << 32 : 0;
        ulong msr = Often(
            random, usual[random.Next(usual.Length)], EndOfInterrupt - 1, EndOfInterrupt + 1, FsBase - 1, FsBase + 3, 0xC000_0103, 0x808,
            0x17, 0x40 | (GuestState.Word(random) & 0xFF)); // not the TSC
        ulong value = Often(
            random, msr == EndOfInterrupt ? 0 : GuestState.Canonical(random), 0, 1, 1UL << 32, NonCanonical, GuestState.Word(random));
        state.General[GuestState.Rcx] = msr | dirt;
        state.General[GuestState.Rax] = (uint)value | dirt;
        state.General[GuestState.Rdx] = (value >> 32) | dirt;
        state.Pending = false;
        byte[][] served = [[], [0x60], [0x41], [0x32, 0x60], [0x33, 0x41, 0x81]];
        state.InService = served[random.Next(served.Length)];
        byte[][] waiting = [[], [], [], [0x30], [0x60], [0x42, 0x65], [0x90]];
        state.Waiting = waiting[random.Next(waiting.Length)];
        state.LevelTriggered = random.Next(4) == 0;
    }

    private static ulong Often(Random random, ulong usual, params ReadOnlySpan<ulong> others) =>
        random.Next(3) != 0 ? usual : others[random.Next(others.Length)];
}
