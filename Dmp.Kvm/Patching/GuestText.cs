using Dmp.Kvm.Boot;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Symbols;

namespace Dmp.Kvm.Patching;

/// <summary>
/// The code of the guest's kernel, read from outside while it runs: pages that were scanned, wherever they are mapped, and the kernel's
/// image, which is mapped as it was linked. What the guest changes meanwhile may be read torn; whoever acts on it verifies it first.
/// </summary>
internal sealed class GuestText(GuestMemory memory, CodePages code, BootState boot, Func<KernelSymbols?> symbols) : IGuestText
{
    private const int JumpEntrySize = 16;
    private const int StaticCallSiteSize = 8;

    // Found once: going through all names takes milliseconds. Null is what a kernel without such a table has.
    private readonly Lazy<(ulong Start, ulong End)?> jumpTable =
        new(() => Table(symbols(), "__start___jump_table", "__stop___jump_table"));

    private readonly Lazy<(ulong Start, ulong End)?> staticCallSites =
        new(() => Table(symbols(), "__start_static_call_sites", "__stop_static_call_sites"));

    /// <inheritdoc/>
    public int Read(ulong address, Span<byte> destination)
    {
        int done = 0;
        while (done < destination.Length)
        {
            ulong at = address + (ulong)done;
            int offset = (int)(at & Paging.PageOffsetMask);
            int length = Math.Min(destination.Length - done, Paging.PageSize - offset);
            if (!TryFindFrame(at, out ulong frame))
            {
                break;
            }

            _ = code.ReadOriginal(frame, offset, destination.Slice(done, length));
            done += length;
        }

        return done;
    }

    /// <inheritdoc/>
    public (ulong Start, ulong End)? Function(ulong address) => symbols()?.Range(address);

    /// <inheritdoc/>
    public bool? IsComparedLater(ulong address)
    {
        // Linux's own tables: pairs of self-relative 32-bit offsets (include/linux/jump_label.h, include/linux/static_call_types.h).
        if (!IsInImage(address) || jumpTable.Value is not { } jumps)
        {
            return null;
        }

        return IsListed(jumps, JumpEntrySize, address)
            || (staticCallSites.Value is { } calls && IsListed(calls, StaticCallSiteSize, address));
    }

    /// <inheritdoc/>
    public bool IsReserved(ulong address) => Reserved?.Invoke(address) ?? false;

    /// <summary>Asks the patch engine; set by it.</summary>
    internal Func<ulong, bool>? Reserved { get; set; }

    private static (ulong Start, ulong End)? Table(KernelSymbols? names, string first, string last) =>
        names is not null && names.TryFind(first, out ulong start) && names.TryFind(last, out ulong end) && end > start
            ? (start, end)
            : null;

    private bool IsListed((ulong Start, ulong End) table, int size, ulong address)
    {
        for (ulong entry = table.Start; entry < table.End && IsInImage(entry); entry += (ulong)size)
        {
            int offset = System.Runtime.InteropServices.MemoryMarshal.Read<int>(
                memory.Slice(PhysicalOf(entry), sizeof(int)));
            if (entry + (ulong)(long)offset == address)
            {
                return true;
            }
        }

        return false;
    }

    private bool TryFindFrame(ulong address, out ulong frame)
    {
        if (code.TryFindFrame(address & ~Paging.PageOffsetMask, out frame))
        {
            return true;
        }

        frame = IsInImage(address) ? PhysicalOf(address).Frame : 0;
        return frame != 0;
    }

    private bool IsInImage(ulong address) => address - boot.KernelVirtualBase.Value < boot.KernelLength;

    private GuestPhysicalAddress PhysicalOf(ulong address) =>
        new(boot.KernelStart.Value + (address - boot.KernelVirtualBase.Value));
}
