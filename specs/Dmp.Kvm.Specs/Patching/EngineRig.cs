using System.Buffers.Binary;
using System.Collections.Immutable;
using Dmp.Kvm.Boot;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Patching;
using Iced.Intel;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>The patch engine over guest memory that nothing runs in: pages of code that a spec writes, scans and gives back.</summary>
internal sealed class EngineRig : IDisposable
{
    internal const ulong Code = 0xFFFF_FFFF_8100_0000;
    internal const int Pages = 4;

    private const ulong Frames = 0x10_0000;
    private const ulong ImageLength = 0x10_0000;

    private readonly GuestMemory memory = GuestMemory.Create(8UL << 20);
    private readonly MappedMemory monitor = MappedMemory.Create("dmp-spec-monitor", MachineLayout.MonitorSize(1));
    private readonly CodeScanner scanner = new();

    internal EngineRig(params string[] disabled)
    {
        Scanned = new CodePages(memory);
        BootState boot = new()
        {
            Entry = new(Frames),
            BootParameters = new(0),
            PageTableRoot = new(0),
            StackTop = new(0),
            GdtBase = new(0),
            GdtLimit = 0,
            KernelStart = new(Frames),
            KernelLength = ImageLength,
            KernelVirtualBase = new(Code),
            KernelId = "",
            BuildId = "",
        };
        Text = new GuestText(memory, Scanned, boot, () => null);
        Engine = new PatchEngine(
            Scanned,
            Text,
            new TemplateSet(new TemplateHost(FsGsBase: true), disabled.ToHashSet()),
            monitor,
            Code);
        Bytes(Code, Pages * Paging.PageSize).Fill(0x90);
    }

    internal PatchEngine Engine { get; }

    internal CodePages Scanned { get; }

    internal GuestText Text { get; }

    /// <summary>Guest memory as it is now.</summary>
    internal Span<byte> Bytes(ulong address, int length) => memory.Slice(new(Frames + (address - Code)), length);

    /// <summary>The frame of a page.</summary>
    internal static ulong Frame(ulong address) => (Frames + (address - Code)) >> Paging.PageShift;

    /// <summary>Writes code where nothing is scanned, or as the guest does after the page was given back.</summary>
    internal void Write(ulong address, ReadOnlySpan<byte> code) => code.CopyTo(Bytes(address, code.Length));

    /// <summary>A page begins to run.</summary>
    internal void Scan(ulong page = Code)
    {
        List<int> traps = [];
        KnownCode? known = Scanned.Prepare(Frame(page));
        int tail = scanner.Scan(
            Bytes(page, Paging.PageSize).ToArray(), new ScanRequest(0, Paging.PageSize, 0, -1), traps, known);
        Scanned.Add(Frame(page), page, traps, tail, scanner.Starts);
    }

    /// <summary>The guest is about to write to a page.</summary>
    internal void Release(ulong page = Code) => Assert.True(Scanned.Remove(Frame(page), out _));

    internal PatchPlan Plan(ulong site) => Assert.IsType<PlanResult.Planned>(Engine.Plan(site, ExitKind.Privileged)).Plan;

    internal PreparedPatch Prepare(PatchPlan plan)
    {
        PreparedPatch? prepared = Engine.Prepare(plan, out PreparationFailure? failure);
        Assert.True(prepared is not null, failure?.Reason);
        return prepared;
    }

    internal PreparedPatch Apply(PatchPlan plan)
    {
        PreparedPatch prepared = Prepare(plan);
        Assert.True(Engine.TryApply(prepared, out string reason), reason);
        return prepared;
    }

    internal List<(ulong Window, PatchNoticeKind What)> Notices()
    {
        List<PatchNotice> notices = [];
        Engine.TakeNotices(notices);
        return [.. notices.Select(notice => (notice.Plan.Window, notice.What))];
    }

    /// <summary>The plan of a window that the spec chose itself.</summary>
    internal PatchPlan PlanOf(ulong window, int length, Springboard? springboard = null)
    {
        byte[] original = new byte[length];
        _ = Scanned.ReadOriginal(Frame(window), (int)(window & Paging.PageOffsetMask), original);
        return new PatchPlan(window, window, [.. original], [new TemplateUse("cli", 1)], springboard);
    }

    /// <summary>Padding as the guest wrote it.</summary>
    internal Springboard SpringboardAt(ulong address)
    {
        byte[] original = new byte[ImplantEncoder.JumpLength];
        _ = Scanned.ReadOriginal(Frame(address), (int)(address & Paging.PageOffsetMask), original);
        return new Springboard(address, [.. original]);
    }

    /// <summary>Where a jump in the guest's memory leads.</summary>
    internal ulong Target(ulong address) =>
        address + ImplantEncoder.JumpLength + (ulong)(long)BinaryPrimitives.ReadInt32LittleEndian(Bytes(address + 1, sizeof(int)));

    /// <summary>The instructions of an implant, read from its memory by way of the arena's page tables.</summary>
    internal ImmutableArray<Instruction> Implant(ulong address, int length) =>
        ImplantEncoder.Decode(address, ArenaReader.Read(monitor, address, length));

    public void Dispose()
    {
        monitor.Dispose();
        memory.Dispose();
    }
}
