using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Cpu;

/// <summary>
/// The VMM's accesses to guest virtual memory, with the guest's own rights and faults. Belongs to one vCPU's thread.
/// </summary>
/// <param name="memory">Guest RAM.</param>
/// <param name="code">The scanned frames.</param>
/// <param name="state">The CPU on whose behalf.</param>
/// <param name="releaseCode">Called before a scanned frame is written to: gives it back.</param>
internal sealed class GuestAccess(GuestMemory memory, CodePages code, CpuState state, Action<ulong> releaseCode)
{
    /// <summary>The fault of the last access that failed.</summary>
    internal GuestFault Fault { get; private set; }

    /// <summary>The access of the current privilege level.</summary>
    internal PageAccess OwnPrivilege => state.UserMode ? PageAccess.User : PageAccess.Read;

    /// <summary>Reads guest memory.</summary>
    /// <returns>Whether it worked; if not, <see cref="Fault"/> says why.</returns>
    internal bool TryRead(ulong address, Span<byte> destination, PageAccess access)
    {
        while (!destination.IsEmpty)
        {
            int length = (int)Math.Min((ulong)destination.Length, Paging.PageSize - (address & Paging.PageOffsetMask));
            if (!TryTranslate(address, access, out Translation translation))
            {
                return false;
            }

            if (!memory.Contains(translation.Address, (ulong)length))
            {
                destination[..length].Fill(byte.MaxValue);
            }
            else
            {
                memory.Slice(translation.Address, length).CopyTo(destination);
            }

            destination = destination[length..];
            address += (ulong)length;
        }

        return true;
    }

    /// <summary>Writes guest memory. Nothing is written unless all of it can be.</summary>
    /// <returns>Whether it worked; if not, <see cref="Fault"/> says why.</returns>
    internal bool TryWrite(ulong address, ReadOnlySpan<byte> source, PageAccess access)
    {
        access |= PageAccess.Write;
        ulong last = address + (ulong)source.Length - 1;
        bool twoPages = (address ^ last) > Paging.PageOffsetMask;
        if (twoPages && !TryTranslate(last, access, out _))
        {
            return false;
        }

        while (!source.IsEmpty)
        {
            int length = (int)Math.Min((ulong)source.Length, Paging.PageSize - (address & Paging.PageOffsetMask));
            if (!TryTranslate(address, access, out Translation translation))
            {
                return false;
            }

            if (memory.Contains(translation.Address, (ulong)length))
            {
                while (!code.TryWrite(translation.Address, source[..length]))
                {
                    releaseCode(translation.Address.Frame);
                }
            }

            source = source[length..];
            address += (ulong)length;
        }

        return true;
    }

    /// <summary>Reads a value.</summary>
    internal bool TryRead<T>(ulong address, PageAccess access, out T value)
        where T : unmanaged
    {
        Span<byte> bytes = stackalloc byte[Unsafe.SizeOf<T>()];
        if (TryRead(address, bytes, access))
        {
            value = MemoryMarshal.Read<T>(bytes);
            return true;
        }

        value = default;
        return false;
    }

    /// <summary>Writes a value.</summary>
    internal bool TryWrite<T>(ulong address, T value, PageAccess access)
        where T : unmanaged
    {
        Span<byte> bytes = stackalloc byte[Unsafe.SizeOf<T>()];
        MemoryMarshal.Write(bytes, in value);
        return TryWrite(address, bytes, access);
    }

    /// <summary>
    /// Reads instruction bytes as the guest wrote them, without the traps of scanned pages.
    /// </summary>
    /// <param name="address">RIP.</param>
    /// <param name="destination">Receives the bytes.</param>
    /// <param name="isTrap">Whether the first byte is one that a trap replaces.</param>
    /// <returns>Bytes read; fewer than asked for when the next page is not mapped, 0 when the first is not.</returns>
    internal int Fetch(ulong address, Span<byte> destination, out bool isTrap)
    {
        isTrap = false;
        int done = 0;
        while (done < destination.Length)
        {
            ulong at = address + (ulong)done;
            int length = (int)Math.Min((ulong)(destination.Length - done), Paging.PageSize - (at & Paging.PageOffsetMask));
            if (!Paging.IsCanonical(at))
            {
                break;
            }

            Translation translation = PageWalk.Translate(
                memory, state.Paging, at, OwnPrivilege | PageAccess.Fetch | PageAccess.Probe);
            if (!translation.Allowed || !memory.Contains(translation.Address, (ulong)length))
            {
                break;
            }

            bool trap = code.ReadOriginal(
                translation.Address.Frame,
                (int)(translation.Address.Value & Paging.PageOffsetMask),
                destination.Slice(done, length));
            isTrap |= trap && done == 0;
            done += length;
        }

        return done;
    }

    /// <summary>Translates an address with the guest's rights.</summary>
    internal bool TryTranslate(ulong address, PageAccess access, out Translation translation)
    {
        if (!Paging.IsCanonical(address))
        {
            translation = default;
            Fault = GuestFault.GeneralProtection;
            return false;
        }

        translation = PageWalk.Translate(memory, state.Paging, address, access);
        if (!translation.Allowed)
        {
            Fault = new GuestFault(ExceptionVector.PageFault, (uint)translation.Error, address);
        }

        return translation.Allowed;
    }
}
