using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Machine;

/// <summary>What to do after a page fault.</summary>
internal enum MemoryFaultAction
{
    /// <summary>The shadow is filled: run the instruction again.</summary>
    Retry,

    /// <summary>The guest gets its page fault.</summary>
    Reflect,

    /// <summary>The address is a device's: emulate the instruction.</summary>
    Emulate,
}

/// <summary>The result of handling a page fault.</summary>
internal readonly record struct MemoryFaultResult(MemoryFaultAction Action, ExitKind Kind, GuestFault Fault = default);

/// <summary>
/// Handles page faults of guest code: those that are the guest's own, those of our virtual TLB, and those that keep code pages scanned
/// before they run and unchanged while they do. Belongs to one vCPU's thread.
/// </summary>
internal sealed class MemoryFaults
{
    private const ulong NoFrame = ulong.MaxValue;
    private const ulong LastUserAddress = long.MaxValue;

    /// <summary>Bytes of the page before that a sweep starts in.</summary>
    private const int LeadIn = 256;

    /// <summary>Bytes of the page behind, for the last instruction.</summary>
    private const int LeadOut = 16;

    /// <summary>Pages around a fault, aligned, that are filled with it when the guest has used them.</summary>
    private const int Neighbours = 16;

    private readonly GuestMemory memory;
    private readonly CodePages code;
    private readonly CpuState state;
    private readonly VirtualTlb tlb;
    private readonly GuestAccess access;
    private readonly TlbShootdown shootdown;
    private readonly int vcpu;
    private readonly CheckedRoot? checkedRoot;
    private readonly CodeScanner scanner = new();
    private readonly List<int> traps = [];
    private readonly byte[] window = new byte[LeadIn + Paging.PageSize + LeadOut];
    private ulong steppedFrame = NoFrame;
    private bool guestWasStepping;
    private ulong temporaryPage;

    internal MemoryFaults(
        GuestMemory memory, CodePages code, CpuState state, VirtualTlb tlb, GuestAccess access, TlbShootdown shootdown, int vcpu, CheckedRoot? checkedRoot)
    {
        this.checkedRoot = checkedRoot;
        this.shootdown = shootdown;
        this.vcpu = vcpu;
        this.memory = memory;
        this.code = code;
        this.state = state;
        this.tlb = tlb;
        this.access = access;
    }

    /// <summary>
    /// Whether one instruction is being stepped that writes to the page it runs from: the page is writable and executable for it, with
    /// its own bytes, and RFLAGS.TF is set.
    /// </summary>
    internal bool Stepping => steppedFrame != NoFrame;

    /// <summary>Handles a page fault.</summary>
    /// <param name="address">CR2.</param>
    /// <param name="error">The hardware's error code.</param>
    /// <param name="rip">Where the instruction is.</param>
    internal MemoryFaultResult Handle(ulong address, PageFaultError error, ulong rip)
    {
        PageAccess wanted = access.OwnPrivilege
            | (error.Has(PageFaultError.Write) ? PageAccess.Write : 0)
            | (error.Has(PageFaultError.InstructionFetch) ? PageAccess.Fetch : 0);
        if (!access.TryTranslate(address, wanted, out Translation translation))
        {
            return new(MemoryFaultAction.Reflect, ExitKind.GuestFault, access.Fault);
        }

        if (!memory.TryToMachine(translation.Address, out MachineAddress machine))
        {
            return new(MemoryFaultAction.Emulate, ExitKind.Io);
        }

        ExitKind kind = ExitKind.HiddenFault;
        ulong frame = translation.Address.Frame;
        bool kernelCode = !state.UserMode && !translation.User;
        if (wanted.Has(PageAccess.Fetch) && frame != steppedFrame)
        {
            if (kernelCode)
            {
                kind = ExitKind.CodeScan;
                Scan(address, rip, frame);
            }
            else if (code.Contains(frame))
            {
                Release(frame);
            }
        }
        else if (wanted.Has(PageAccess.Write) && code.Contains(frame))
        {
            kind = ExitKind.CodeWrite;
            Release(frame);
            if (IsOwnPage(rip, frame))
            {
                BeginStep(frame);
            }
        }

        Fill(address, machine, translation, wanted, kernelCode);
        return new(MemoryFaultAction.Retry, kind);
    }

    /// <summary>A scanned frame is about to be written: its bytes come back, and it may not be executed until it is scanned again.</summary>
    /// <param name="frame">The frame.</param>
    /// <param name="refill">Whether the page is likely to be used at once by this vCPU.</param>
    internal void Release(ulong frame, bool refill = true)
    {
        ulong page;
        using (code.Changes.Enter())
        {
            if (!code.Close(frame))
            {
                return;
            }

            shootdown.Shoot(frame, vcpu, writableOnly: false);
            tlb.DropFrame(frame);
            _ = code.Remove(frame, out page);
        }

        if (refill)
        {
            // Code is patched by code that reads it before and after.
            TryPrefill(page, kernelCode: true);
        }
    }

    /// <summary>
    /// A trap was met that stands for no silent instruction: in a page of slots, code that had not been seen to run.
    /// </summary>
    /// <returns>Whether the instruction can run now.</returns>
    internal bool TryReveal(ulong rip) => code.Reveal(FrameOf(rip), (int)(rip & Paging.PageOffsetMask), scanner);

    /// <summary>What a trap means that the guest has copied into a slot (<see cref="CodePages.TryReadCopiedTrap"/>).</summary>
    internal bool TryReadCopiedTrap(ulong rip, ulong source, out byte meant) => code.TryReadCopiedTrap(FrameOf(rip), source, out meant);

    /// <summary>The stepped instruction is over: the page is protected again, and scanned when it is next executed.</summary>
    /// <returns>Whether RFLAGS.TF was ours alone.</returns>
    internal bool EndStep()
    {
        tlb.DropFrame(steppedFrame);
        steppedFrame = NoFrame;
        return !guestWasStepping;
    }

    /// <summary>The vCPU begins anew: there is no stepped instruction any more.</summary>
    internal void ForgetStep()
    {
        if (Stepping)
        {
            _ = EndStep();
        }
    }

    /// <summary>Says whether the guest itself single-steps, before a step of ours begins.</summary>
    internal void NoteGuestFlags(ulong rflags)
    {
        if (!Stepping)
        {
            guestWasStepping = (rflags & (ulong)Rflags.Trap) != 0;
        }
    }

    private void BeginStep(ulong frame) => steppedFrame = frame;

    private bool IsOwnPage(ulong rip, ulong frame)
    {
        const ulong LongestInstruction = 15;
        return FrameOf(rip) == frame || FrameOf(rip + LongestInstruction) == frame;
    }

    private ulong FrameOf(ulong rip)
    {
        if (!Paging.IsCanonical(rip))
        {
            return NoFrame - 1;
        }

        Translation translation = PageWalk.Translate(
            memory, state.Paging, rip, access.OwnPrivilege | PageAccess.Fetch | PageAccess.Probe);
        return translation.Allowed ? translation.Address.Frame : NoFrame - 1;
    }

    private void Fill(
        ulong address, MachineAddress machine, in Translation translation, PageAccess wanted, bool kernelCode)
    {
        ulong frame = translation.Address.Frame;
        shootdown.NoteUse(frame, vcpu, translation.Level > 1);
        bool isCode = code.Contains(frame);
        bool mayRun = isCode && code.MayExecute(frame, address & ~Paging.PageOffsetMask);
        bool stepped = frame == steppedFrame;

        // Without CR0.WP the guest's kernel writes to read-only pages; CPL 3 never does, so the entry must allow it.
        bool writable = translation.Writable || (wanted.Has(PageAccess.Write) && !state.UserMode);
        ShadowLeaf leaf = new()
        {
            Frame = machine.Value & ~Paging.PageOffsetMask,
            Writable = writable && translation.Dirty && !isCode,
            Executable = translation.Executable && (!kernelCode || mayRun || stepped),
            User = translation.User,
            Global = translation.Global,
            GuestLevel = translation.Level,
            MayBeLarge = translation.Level > 1 && !stepped && IsPlainLargePage(frame),
        };
        tlb.Fill(address, leaf, state.UserMode);
        bool isTemporary = kernelCode && address <= LastUserAddress;
        if (isTemporary)
        {
            // Linux patches its text through an address space of its own, with one such page.
            temporaryPage = address & ~Paging.PageOffsetMask;
        }

        if (!leaf.MayBeLarge && !stepped)
        {
            FillNeighbours(address, kernelCode);
        }

        if (isTemporary)
        {
            checkedRoot?.Offer(state.Paging, temporaryPage);
        }
    }

    /// <summary>
    /// A processor may cache any translation whose accessed bit is set. Filling the neighbours of a fault with it saves their faults.
    /// </summary>
    private void FillNeighbours(ulong address, bool kernelCode)
    {
        ulong page = address & ~Paging.PageOffsetMask;
        ulong first = page & ~((ulong)(Neighbours * Paging.PageSize) - 1);
        for (int index = 0; index < Neighbours; index++)
        {
            ulong neighbour = first + (ulong)(index * Paging.PageSize);
            if (neighbour == page || tlb.Lookup(neighbour, state.UserMode) != 0)
            {
                continue;
            }

            TryPrefill(neighbour, kernelCode);
        }
    }

    /// <summary>
    /// A CR3 load emptied the current address space's entries. The page through which the guest patches its text is used at once.
    /// </summary>
    internal void AfterColdLoad()
    {
        if (temporaryPage != 0)
        {
            TryPrefill(temporaryPage, kernelCode: true);
            checkedRoot?.Offer(state.Paging, temporaryPage);
        }
    }

    /// <summary>Fills the entry of a page that the guest has used: a processor may cache its translation at any time.</summary>
    /// <param name="page">Virtual address of the page.</param>
    /// <param name="kernelCode">Whether it is to be a supervisor page, and this the kernel.</param>
    private void TryPrefill(ulong page, bool kernelCode)
    {
        Translation translation = PageWalk.Translate(memory, state.Paging, page, access.OwnPrivilege | PageAccess.Probe);
        if (!translation.Allowed || !translation.Accessed || translation.User == kernelCode
            || !memory.TryToMachine(translation.Address, out MachineAddress machine))
        {
            return;
        }

        shootdown.NoteUse(translation.Address.Frame, vcpu, translation.Level > 1);
        bool isCode = code.Contains(translation.Address.Frame);
        bool mayRun = kernelCode ? isCode && code.MayExecute(translation.Address.Frame, page) : !isCode;
        tlb.Fill(
            page,
            new ShadowLeaf
            {
                Frame = machine.Value & ~Paging.PageOffsetMask,
                Writable = translation.Writable && translation.Dirty && !isCode,
                Executable = translation.Executable && mayRun,
                User = translation.User,
                Global = translation.Global,
                GuestLevel = translation.Level,
                MayBeLarge = translation.Level > 1 && IsPlainLargePage(translation.Address.Frame),
            },
            state.UserMode);
    }

    /// <summary>Whether 2 MiB around a frame are RAM without code, so that one entry may map them.</summary>
    private bool IsPlainLargePage(ulong frame)
    {
        const ulong Frames = Paging.LargePageSize / Paging.PageSize;
        GuestPhysicalAddress start = new((frame & ~(Frames - 1)) << Paging.PageShift);
        return memory.Contains(start, Paging.LargePageSize) && !code.AnyInLargePage(frame);
    }

    private void Scan(ulong address, ulong rip, ulong frame)
    {
        ulong page = address & ~Paging.PageOffsetMask;
        if (code.MayExecute(frame, page))
        {
            // New to this vCPU's TLB only: nobody has to wait for that.
            return;
        }

        using (code.Changes.Enter())
        {
            if (code.MayExecute(frame, page))
            {
                return;
            }

            Release(frame);
            if (code.TryFindFrame(page, out ulong old))
            {
                // The guest runs other code at this address now.
                Release(old);
            }

            // What is swept must be what runs: no vCPU writes to the frame from here on.
            code.Claim(frame);
            shootdown.Shoot(frame, vcpu, writableOnly: true);
            tlb.DropWritable(frame);
            Sweep(address, rip, frame, page);
        }
    }

    private void Sweep(ulong address, ulong rip, ulong frame, ulong page)
    {
        KnownCode? known = code.Prepare(frame);
        int lead = access.Fetch(page - LeadIn, window.AsSpan(0, LeadIn), out _) == LeadIn ? LeadIn : 0;

        // The frame that faulted, wherever another vCPU lets the page lead by now.
        _ = code.ReadOriginal(frame, 0, window.AsSpan(lead, Paging.PageSize));
        int read = Paging.PageSize
            + access.Fetch(page + Paging.PageSize, window.AsSpan(lead + Paging.PageSize, LeadOut), out _);
        if (!code.IsOriginalText(frame) && scanner.HasSlots(window.AsSpan(lead, Paging.PageSize)))
        {
            code.AddCovered(frame, page);
            _ = TryReveal(rip);
            return;
        }

        ulong previous = lead == 0 ? NoFrame : FrameOf(page - 1);
        int spill = code.Spill(previous);

        // CR2 is where the fetch failed: the start of the page, when the instruction at RIP reaches into it from the page before.
        long behindPage = (long)(rip - page);
        int boundary = lead + (int)(behindPage >= -lead && behindPage < Paging.PageSize
            ? behindPage
            : (long)(address & Paging.PageOffsetMask));
        int tail = scanner.Scan(
            window.AsSpan(0, lead + read),
            new ScanRequest(lead, Paging.PageSize, boundary, spill < 0 ? -1 : lead + spill),
            traps,
            known);
        code.Add(frame, page, traps, tail, scanner.Starts);
    }
}
