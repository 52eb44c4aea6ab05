using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>What a run of a <see cref="PatchRig"/> begins with.</summary>
internal sealed class GuestState
{
    internal const int GeneralRegisters = 16;
    internal const int Rax = 0;
    internal const int Rcx = 1;
    internal const int Rdx = 2;
    internal const int Rsp = 4;
    internal const int R11 = 11;

    /// <summary>The general registers, as instructions number them.</summary>
    internal static readonly string[] Names =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

    internal ulong[] General { get; } = new ulong[GeneralRegisters];

    internal ulong Rip { get; set; }

    /// <summary>Flags that are real: neither IF nor IOPL.</summary>
    internal ulong Flags { get; set; }

    internal bool InterruptFlag { get; set; }

    internal ulong IoPrivilege { get; set; }

    internal ulong Cr2 { get; set; }

    /// <summary>0: as it is.</summary>
    internal ulong Cr3 { get; set; }

    internal ushort CodeSelector { get; set; } = PatchRig.KernelCode;

    internal ushort StackSelector { get; set; } = PatchRig.KernelData;

    internal ulong GsBase { get; set; }

    internal ulong FsBase { get; set; }

    internal ulong KernelGsBase { get; set; }

    internal ulong Star { get; set; }

    /// <summary>CR4.OSXSAVE.</summary>
    internal bool XSave { get; set; }

    /// <summary>XCR0 as the guest believes it to be.</summary>
    internal ulong Xcr0 { get; set; } = 1;

    /// <summary>An NMI was delivered and is not over.</summary>
    internal bool NmiBlocked { get; set; }

    /// <summary>An interrupt waits.</summary>
    internal bool Pending { get; set; }

    /// <summary>Accesses to ports that precede the run; without a value it is a read.</summary>
    internal List<(ushort Port, byte? Value)> Ports { get; } = [];

    /// <summary>Characters that were typed before.</summary>
    internal int Typed { get; set; }

    /// <summary>Vectors that are served, in the order in which they came.</summary>
    internal byte[] InService { get; set; } = [];

    /// <summary>They came by a level.</summary>
    internal bool LevelTriggered { get; set; }

    /// <summary>Vectors that wait, besides <see cref="Pending"/>.</summary>
    internal byte[] Waiting { get; set; } = [];

    internal int MemorySeed { get; set; }

    internal List<(ulong Address, ulong Value)> Memory { get; } = [];

    /// <summary>A state without anything special.</summary>
    internal static GuestState Plain(ulong rip)
    {
        GuestState state = new() { Rip = rip };
        state.General[Rsp] = PatchRig.Stack + 0x800;
        return state;
    }

    /// <summary>Any state that a kernel could be in.</summary>
    internal static GuestState Any(Random random, ulong rip)
    {
        const Rflags Arithmetic = (Rflags)0x8D5;
        const Rflags Rare = Rflags.Direction | Rflags.NestedTask | Rflags.AlignmentCheck | Rflags.Identification | Rflags.Trap;
        GuestState state = new()
        {
            Rip = rip,
            Flags = Flags_(random, (ulong)Arithmetic, (ulong)Rare),
            InterruptFlag = random.Next(2) == 0,
            IoPrivilege = random.Next(4) == 0 ? (ulong)random.Next(4) << 12 : 0,
            Cr2 = Word(random),
            GsBase = Canonical(random),
            FsBase = Canonical(random),
            KernelGsBase = Canonical(random),
            Pending = random.Next(4) == 0,
            MemorySeed = random.Next(),
        };
        for (int index = 0; index < GeneralRegisters; index++)
        {
            state.General[index] = Word(random);
        }

        // Room for what is pushed and popped; not always aligned.
        state.General[Rsp] = PatchRig.Stack + (ulong)random.Next(0x100, PatchRig.StackBytes - 0x100);
        if (random.Next(4) != 0 || (state.Flags & (ulong)Rflags.AlignmentCheck) != 0)
        {
            // Some hosts check the alignment at CPL 3 whatever CR0.AM is; a kernel that sets AC has to live with that, patched or not.
            state.General[Rsp] &= ~7UL;
        }

        return state;
    }

    /// <summary>A flags image as it may lie on a stack: often plain, sometimes with anything.</summary>
    internal static ulong FlagsImage(Random random) => random.Next(8) switch
    {
        0 => Word(random),
        1 => (ulong)random.NextInt64() & 0x3F_FFFF,
        2 => Flags_(random, 0xCD5, (ulong)Rflags.All) | ((ulong)Rflags.Interrupt & Word(random)),
        _ => ((ulong)random.NextInt64() & (0x8D5 | (ulong)Rflags.Interrupt)) | (ulong)Rflags.AlwaysOne,
    };

    internal static ulong Word(Random random)
    {
        ulong any = ((ulong)random.NextInt64() << 1) ^ (ulong)random.Next(2);
        return random.Next(6) switch
        {
            0 => any & 0xFF,
            1 => any & 0xFFFF_FFFF,
            2 => (ulong)(long)(int)any,
            _ => any,
        };
    }

    internal static ulong Canonical(Random random) => (ulong)((long)(Word(random) << 16) >> 16);

    internal static ref ulong General64(ref KvmRegs regs, int index)
    {
        switch (index)
        {
            case 0: return ref regs.Rax;
            case 1: return ref regs.Rcx;
            case 2: return ref regs.Rdx;
            case 3: return ref regs.Rbx;
            case 4: return ref regs.Rsp;
            case 5: return ref regs.Rbp;
            case 6: return ref regs.Rsi;
            case 7: return ref regs.Rdi;
            case 8: return ref regs.R8;
            case 9: return ref regs.R9;
            case 10: return ref regs.R10;
            case 11: return ref regs.R11;
            case 12: return ref regs.R12;
            case 13: return ref regs.R13;
            case 14: return ref regs.R14;
            default: return ref regs.R15;
        }
    }

    private static ulong Flags_(Random random, ulong often, ulong seldom)
    {
        ulong flags = (ulong)random.NextInt64() & often;
        for (ulong bit = 1; bit <= seldom; bit <<= 1)
        {
            flags |= (seldom & bit) != 0 && random.Next(10) == 0 ? bit : 0;
        }

        return flags;
    }
}

/// <summary>What a run of a <see cref="PatchRig"/> ended with.</summary>
internal sealed class GuestResult
{
    private readonly List<(string Name, ulong Value)> values = [];
    private readonly List<(ulong Address, byte[] Bytes)> memory = [];

    internal ulong this[string name] => values.Find(value => value.Name == name).Value;

    /// <summary>RIP that an exception handler found on its stack; 0 when none ran.</summary>
    internal ulong FaultedAt { get; set; }

    /// <summary>RFLAGS in that frame.</summary>
    internal ulong FlagsAtFault { get; set; }

    /// <summary>RSP in that frame.</summary>
    internal ulong StackAtFault { get; set; }

    internal void Note(string name, ulong value) => values.Add((name, value));

    internal void NoteMemory(ulong address, ReadOnlySpan<byte> bytes) => memory.Add((address, bytes.ToArray()));

    /// <summary>Where two runs differ; empty when nowhere.</summary>
    /// <param name="other">The other run.</param>
    /// <param name="dead">Words of memory that nobody may rely on.</param>
    internal string Difference(GuestResult other, IReadOnlyCollection<ulong> dead)
    {
        List<string> differences = [];
        for (int index = 0; index < values.Count; index++)
        {
            if (values[index] != other.values[index])
            {
                differences.Add($"{values[index].Name} {values[index].Value:x} / {other.values[index].Value:x}");
            }
        }

        for (int part = 0; part < memory.Count; part++)
        {
            (ulong start, byte[] bytes) = memory[part];
            for (int at = 0; at < bytes.Length; at++)
            {
                at += bytes.AsSpan(at).CommonPrefixLength(other.memory[part].Bytes.AsSpan(at));
                ulong address = start + (ulong)at;
                if (at < bytes.Length && !dead.Any(word => address - word < sizeof(ulong)))
                {
                    differences.Add($"[{address:x}] {bytes[at]:x2} / {other.memory[part].Bytes[at]:x2}");
                }
            }
        }

        return string.Join(", ", differences);
    }
}
