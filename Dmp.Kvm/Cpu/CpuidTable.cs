using System.Runtime.InteropServices;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Cpu;

/// <summary>An answer to CPUID, as implants find it. The first entry that answers counts; one without functions ends the table.</summary>
[StructLayout(LayoutKind.Explicit, Size = Bytes)]
internal struct CpuidTableEntry
{
    internal const int Bytes = 32;
    internal const int FunctionOffset = 0;
    internal const int FunctionsOffset = 4;
    internal const int IndexOffset = 8;
    internal const int IndexMaskOffset = 12;
    internal const int EaxOffset = 16;
    internal const int EbxOffset = 20;
    internal const int EcxOffset = 24;
    internal const int EdxOffset = 28;

    /// <summary>The lowest EAX of the question.</summary>
    [FieldOffset(FunctionOffset)]
    internal uint Function;

    /// <summary>How many values of EAX from there on; 0 behind the last entry.</summary>
    [FieldOffset(FunctionsOffset)]
    internal uint Functions;

    /// <summary>ECX of the question, under the mask.</summary>
    [FieldOffset(IndexOffset)]
    internal uint Index;

    /// <summary>The bits of ECX that matter: all or none.</summary>
    [FieldOffset(IndexMaskOffset)]
    internal uint IndexMask;

    [FieldOffset(EaxOffset)]
    internal uint Eax;

    [FieldOffset(EbxOffset)]
    internal uint Ebx;

    [FieldOffset(EcxOffset)]
    internal uint Ecx;

    [FieldOffset(EdxOffset)]
    internal uint Edx;
}

/// <summary>
/// A vCPU's answers to CPUID in the page that its implants read. Some of them follow CR4 and XCR0, so the table is refreshed before
/// guest code runs with others than it was made for. The vCPU's thread, while the vCPU does not run.
/// </summary>
internal sealed class CpuidTable
{
    private readonly CpuidModel model;
    private readonly int vcpu;
    private readonly CpuidQuestion[] questions;
    private readonly MappedMemory? region;
    private readonly CpuidTableEntry[] own;
    private bool made;
    private Cr4 madeForCr4;
    private ulong madeForXcr0;

    /// <summary>The table of a vCPU.</summary>
    /// <param name="model">The answers.</param>
    /// <param name="vcpu">Index of the vCPU.</param>
    /// <param name="region">The monitor region; null for a table of its own that no implant sees.</param>
    internal CpuidTable(CpuidModel model, int vcpu, MappedMemory? region)
    {
        this.model = model;
        this.vcpu = vcpu;
        this.region = region;
        own = region is null ? new CpuidTableEntry[Capacity] : [];

        // What does not fit keeps its trap.
        questions = [.. model.Questions().Take(Capacity - 1)];
    }

    /// <summary>Entries, with the one that ends the table.</summary>
    internal static int Capacity => Paging.PageSize / CpuidTableEntry.Bytes;

    /// <summary>The table.</summary>
    internal Span<CpuidTableEntry> Entries => region is null
        ? own
        : MemoryMarshal.Cast<byte, CpuidTableEntry>(
            region.Slice(MachineLayout.VcpuBlock(vcpu) + MachineLayout.CpuidPageOffset, Paging.PageSize));

    /// <summary>Makes the answers those of a state. Nothing to do most of the time.</summary>
    internal void Refresh(CpuState state)
    {
        if (made && madeForCr4 == state.Cr4 && madeForXcr0 == state.Xcr0)
        {
            return;
        }

        Span<CpuidTableEntry> entries = Entries;
        for (int at = 0; at < questions.Length; at++)
        {
            CpuidQuestion question = questions[at];
            CpuidResult answer = model.Query(question.Function, question.Index, vcpu, state);
            entries[at] = new CpuidTableEntry
            {
                Function = question.Function,
                Functions = question.Functions,
                Index = question.AnyIndex ? 0 : question.Index,
                IndexMask = question.AnyIndex ? 0 : uint.MaxValue,
                Eax = answer.Eax,
                Ebx = answer.Ebx,
                Ecx = answer.Ecx,
                Edx = answer.Edx,
            };
        }

        madeForCr4 = state.Cr4;
        madeForXcr0 = state.Xcr0;
        made = true;
    }
}
