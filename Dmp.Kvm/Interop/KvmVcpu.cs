using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Dmp.Kvm.Interop;

/// <summary>
/// A KVM vCPU and its shared kvm_run block. Registers and segment registers travel through the block in both directions
/// (KVM_CAP_SYNC_REGS), which costs no ioctl. All members belong to the thread that runs the vCPU.
/// </summary>
internal sealed unsafe class KvmVcpu : ICpuRegisters, IDisposable
{
    private const int XcrsSize = 392;
    private const int XcrsFirstValue = 16;

    private readonly int descriptor;
    private readonly int mappingSize;
    private readonly KvmRun* run;

    // Segment and control registers as KVM has them, so that they are handed over only when they were changed.
    private KvmSregs known;

    internal KvmVcpu(int descriptor, int mappingSize)
    {
        this.descriptor = descriptor;
        this.mappingSize = mappingSize;
        nint mapping = Libc.Map(
            0, (nuint)mappingSize, Libc.ProtectionRead | Libc.ProtectionWrite, Libc.MapShared, descriptor, 0);
        if (mapping == -1)
        {
            KvmException error = KvmException.Last("mapping kvm_run", "Too little memory on the host.");
            _ = Libc.Close(descriptor);
            throw error;
        }

        run = (KvmRun*)mapping;
        run->ValidRegs = KvmRun.SyncRegs | KvmRun.SyncSregs;
        KvmSregs sregs;
        Check(KvmRequest.GetSregs, &sregs);
        run->Sregs = sregs;
    }

    /// <summary>General registers: those of the last exit, or those for the next entry.</summary>
    public ref KvmRegs Regs => ref run->Regs;

    /// <summary>Segment and control registers: those of the last exit, or those for the next entry.</summary>
    public ref KvmSregs Sregs => ref run->Sregs;

    /// <summary>The block itself, to read an exit's details.</summary>
    internal ref readonly KvmRun Exit => ref *run;

    /// <summary>Runs guest code with <see cref="Regs"/> and <see cref="Sregs"/> as they stand.</summary>
    /// <param name="loadRegisters">Whether the registers were changed; if not, the vCPU goes on exactly where it is.</param>
    /// <returns>The reason, or <see cref="KvmExitReason.Interrupted"/> for EINTR and EAGAIN.</returns>
    internal KvmExitReason Run(bool loadRegisters)
    {
        run->DirtyRegs = loadRegisters ? KvmRun.SyncRegs | (SregsChanged() ? KvmRun.SyncSregs : 0) : 0;
        bool done = Libc.Ioctl(descriptor, (nuint)KvmRequest.Run, 0) >= 0;
        int errno = done ? 0 : Marshal.GetLastPInvokeError();
        known = run->Sregs;
        if (done)
        {
            return run->ExitReason;
        }

        return errno is Libc.Eintr or Libc.Eagain
            ? KvmExitReason.Interrupted
            : throw new KvmException("KVM_RUN", errno, "The host's KVM refused to run the vCPU; see the host's kernel log.");
    }

    private bool SregsChanged() =>
        !MemoryMarshal.AsBytes(new ReadOnlySpan<KvmSregs>(in known)).SequenceEqual(
            MemoryMarshal.AsBytes(new ReadOnlySpan<KvmSregs>(in run->Sregs)));

    /// <summary>
    /// Lets KVM finish an instruction whose exit was answered, and runs none: it would go on in the middle of it at the next KVM_RUN,
    /// whatever the registers say by then. <see cref="Regs"/> and <see cref="Sregs"/> are KVM's afterwards.
    /// </summary>
    /// <param name="loadRegisters">Whether KVM takes the registers as they stand.</param>
    internal void Exchange(bool loadRegisters)
    {
        run->ImmediateExit = 1;
        _ = Run(loadRegisters);
        run->ImmediateExit = 0;
    }

    /// <summary>The bytes of an exit for port I/O: to be filled for IN, to be read for OUT.</summary>
    internal Span<byte> IoData => new((byte*)run + run->IoDataOffset, (int)(run->IoCount * run->IoSize));

    /// <summary>Answers a read of memory-mapped registers.</summary>
    internal void AnswerMmio(ulong value) => run->MmioData = value;

    /// <summary>Answers RDMSR and WRMSR.</summary>
    /// <param name="value">What RDMSR returns.</param>
    /// <param name="fault">Whether the instruction ends with #GP.</param>
    internal void AnswerMsr(ulong value, bool fault)
    {
        run->MsrData = value;
        run->MsrError = fault ? (byte)1 : (byte)0;
    }

    /// <summary>Whether KVM_RUN is to return as soon as an interrupt can be injected.</summary>
    internal void RequestInterruptWindow(bool wanted) => run->RequestInterruptWindow = wanted ? (byte)1 : (byte)0;

    /// <summary>Injects an interrupt; only when KVM is ready for one.</summary>
    internal void InjectInterrupt(byte vector)
    {
        uint argument = vector;
        Check(KvmRequest.Interrupt, &argument);
    }

    /// <summary>Makes KVM deliver an NMI.</summary>
    internal void InjectNmi() => Check(KvmRequest.NonMaskableInterrupt, null);

    /// <summary>Makes the next KVM_RUN end with KVM_EXIT_DEBUG behind one instruction.</summary>
    /// <returns>Whether KVM can do it.</returns>
    internal bool TryStep() => TryDebug(new KvmGuestDebug { Control = KvmGuestDebug.Enable | KvmGuestDebug.SingleStep });

    /// <summary>Ends <see cref="TryStep"/>.</summary>
    internal void EndDebugging() => _ = TryDebug(default);

    /// <summary>Translates a linear address as the vCPU's paging mode does.</summary>
    /// <returns>Whether it is mapped.</returns>
    internal bool TryTranslate(ulong linearAddress, out ulong physicalAddress)
    {
        KvmTranslation translation = new() { LinearAddress = linearAddress };
        bool known = Libc.Ioctl(descriptor, (nuint)KvmRequest.Translate, &translation) == 0 && translation.Valid != 0;
        physicalAddress = translation.PhysicalAddress;
        return known;
    }

    /// <summary>Sets the signals that stay blocked inside KVM_RUN.</summary>
    internal void SetSignalMask(ulong blocked)
    {
        byte* argument = stackalloc byte[sizeof(uint) + Libc.KernelSignalSetSize];
        *(uint*)argument = Libc.KernelSignalSetSize;
        Unsafe.WriteUnaligned(argument + sizeof(uint), blocked);
        Check(KvmRequest.SetSignalMask, argument);
    }

    /// <summary>Tells KVM what CPUID the guest has.</summary>
    internal void SetCpuid(ReadOnlySpan<KvmCpuidEntry> entries)
    {
        byte[] buffer = new byte[8 + (entries.Length * sizeof(KvmCpuidEntry))];
        fixed (byte* pointer = buffer)
        {
            *(uint*)pointer = (uint)entries.Length;
            entries.CopyTo(new Span<KvmCpuidEntry>(pointer + 8, entries.Length));
            Check(KvmRequest.SetCpuid2, pointer);
        }
    }

    /// <summary>Writes one MSR.</summary>
    /// <returns>Whether KVM took it.</returns>
    public bool TrySetMsr(uint index, ulong value)
    {
        byte* argument = stackalloc byte[8 + sizeof(KvmMsrEntry)];
        new Span<byte>(argument, 8 + sizeof(KvmMsrEntry)).Clear();
        *(uint*)argument = 1;
        *(KvmMsrEntry*)(argument + 8) = new KvmMsrEntry { Index = index, Data = value };
        return Libc.Ioctl(descriptor, (nuint)KvmRequest.SetMsrs, argument) == 1;
    }

    /// <summary>Reads one MSR.</summary>
    /// <returns>Whether KVM knows it.</returns>
    internal bool TryGetMsr(uint index, out ulong value)
    {
        byte* argument = stackalloc byte[8 + sizeof(KvmMsrEntry)];
        new Span<byte>(argument, 8 + sizeof(KvmMsrEntry)).Clear();
        *(uint*)argument = 1;
        *(KvmMsrEntry*)(argument + 8) = new KvmMsrEntry { Index = index };
        bool known = Libc.Ioctl(descriptor, (nuint)KvmRequest.GetMsrs, argument) == 1;
        value = ((KvmMsrEntry*)(argument + 8))->Data;
        return known;
    }

    /// <summary>Sets XCR0.</summary>
    /// <returns>Whether KVM took it.</returns>
    public bool TrySetXcr0(ulong value)
    {
        byte* argument = stackalloc byte[XcrsSize];
        new Span<byte>(argument, XcrsSize).Clear();
        *(uint*)argument = 1;
        Unsafe.WriteUnaligned(argument + XcrsFirstValue, value);
        return Libc.Ioctl(descriptor, (nuint)KvmRequest.SetXcrs, argument) == 0;
    }

    /// <summary>Reads XCR0.</summary>
    /// <returns>Whether KVM has it.</returns>
    internal bool TryGetXcr0(out ulong value)
    {
        byte* argument = stackalloc byte[XcrsSize];
        new Span<byte>(argument, XcrsSize).Clear();
        bool known = Libc.Ioctl(descriptor, (nuint)KvmRequest.GetXcrs, argument) == 0 && *(uint*)argument != 0;
        value = Unsafe.ReadUnaligned<ulong>(argument + XcrsFirstValue);
        return known;
    }

    /// <summary>Reads DR0 to DR3, DR6 and DR7.</summary>
    internal KvmDebugRegs GetDebugRegs()
    {
        KvmDebugRegs registers;
        Check(KvmRequest.GetDebugRegs, &registers);
        return registers;
    }

    /// <summary>Sets DR0 to DR3, DR6 and DR7.</summary>
    internal void SetDebugRegs(KvmDebugRegs registers) => Check(KvmRequest.SetDebugRegs, &registers);

    /// <summary>The frequency of the guest's TSC in kHz, or 0 when KVM does not say.</summary>
    internal int TscKilohertz() => Math.Max(0, Libc.Ioctl(descriptor, (nuint)KvmRequest.GetTscKhz, 0));

    /// <summary>Whether the guest's TSC is known to be the host's.</summary>
    internal bool SharesHostTsc { get; private set; }

    /// <summary>
    /// Gives the guest the host's own TSC, so that it is the same on every vCPU of every VM. Without it KVM lets the TSC of each VM begin at
    /// 0. A KVM that does not have this (Linux before 5.16, or one that cannot offset the TSC) leaves it as it is.
    /// </summary>
    internal void ShareHostTsc()
    {
        ulong offset = 0;
        KvmDeviceAttribute attribute = new()
        {
            Group = KvmDeviceAttribute.TscControl,
            Attribute = KvmDeviceAttribute.TscOffset,
            Address = (ulong)&offset,
        };
        SharesHostTsc = Libc.Ioctl(descriptor, (nuint)KvmRequest.SetDeviceAttribute, &attribute) == 0;
    }

    /// <summary>Whether an exception waits inside KVM to be delivered with the next entry.</summary>
    internal bool HasPendingException()
    {
        KvmVcpuEvents events;
        Check(KvmRequest.GetVcpuEvents, &events);
        return events.ExceptionInjected != 0 || events.ExceptionPending != 0;
    }

    /// <summary>Whether an exception, an interrupt or an NMI waits inside KVM to be delivered with the next entry.</summary>
    internal bool HasPendingEvent()
    {
        KvmVcpuEvents events;
        Check(KvmRequest.GetVcpuEvents, &events);
        return (events.ExceptionInjected | events.ExceptionPending | events.InterruptInjected | events.NmiInjected | events.NmiPending) != 0;
    }

    /// <summary>Forgets what waits inside KVM to be delivered, as INIT does.</summary>
    internal void ForgetPendingEvents()
    {
        KvmVcpuEvents events = new() { Flags = KvmVcpuEvents.NmiPendingIsValid | KvmVcpuEvents.ShadowIsValid };
        Check(KvmRequest.SetVcpuEvents, &events);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _ = Libc.Unmap((nint)run, (nuint)mappingSize);
        _ = Libc.Close(descriptor);
    }

    private bool TryDebug(KvmGuestDebug debug) => Libc.Ioctl(descriptor, (nuint)KvmRequest.SetGuestDebug, &debug) == 0;

    private void Check(KvmRequest request, void* argument)
    {
        if (Libc.Ioctl(descriptor, (nuint)request, argument) < 0)
        {
            throw KvmException.Last($"KVM ioctl {request}", "Run ./dmp probe to see what this KVM can do.");
        }
    }
}
