using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Memory;

/// <summary>
/// Guest RAM in one memory file: from 0 up to the device hole, the rest from 4 GiB. Machine addresses of RAM equal its guest
/// physical ones today; whoever needs one asks <see cref="TryToMachine"/>. Any thread; guest code changes it at any time.
/// </summary>
public sealed class GuestMemory : IGuestRam, IDisposable
{
    private readonly MappedMemory memory;
    private readonly ulong lowSize;

    private GuestMemory(MappedMemory memory)
    {
        this.memory = memory;
        lowSize = Math.Min(memory.Size, MachineLayout.LowRamLimit);
        Ranges = memory.Size > lowSize
            ? [
                new GuestRamRange(new GuestPhysicalAddress(0), lowSize),
                new GuestRamRange(new GuestPhysicalAddress(MachineLayout.HighRamBase), memory.Size - lowSize),
            ]
            : [new GuestRamRange(new GuestPhysicalAddress(0), lowSize)];
    }

    /// <inheritdoc/>
    public ulong Size => memory.Size;

    /// <inheritdoc/>
    public IReadOnlyList<GuestRamRange> Ranges { get; }

    /// <summary>One more than the highest frame number of RAM.</summary>
    internal ulong FrameLimit => Ranges[^1].Start.Plus(Ranges[^1].Length).Frame;

    /// <summary>The file behind, for KVM's memory slots.</summary>
    internal MappedMemory Mapping => memory;

    /// <summary>Creates RAM. No page of it is committed until somebody writes to it.</summary>
    /// <param name="size">Bytes; a multiple of 2 MiB.</param>
    public static GuestMemory Create(ulong size)
    {
        ArgumentOutOfRangeException.ThrowIfZero(size);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(size, MachineLayout.MaximumRam);
        ArgumentOutOfRangeException.ThrowIfNotEqual(size % Paging.LargePageSize, 0UL);
        return new GuestMemory(MappedMemory.Create("dmp-guest-ram", size));
    }

    /// <inheritdoc/>
    public Span<byte> Slice(GuestPhysicalAddress address, int length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        return TryToOffset(address.Value, (ulong)length, out ulong offset)
            ? memory.Slice(offset, length)
            : throw new GuestMemoryException("access", address, (ulong)length, Size);
    }

    /// <summary>Whether the range is RAM.</summary>
    public bool Contains(GuestPhysicalAddress address, ulong length) => TryToOffset(address.Value, length, out _);

    /// <summary>The machine address of a byte of RAM.</summary>
    /// <returns>Whether it is RAM.</returns>
    internal bool TryToMachine(GuestPhysicalAddress address, out MachineAddress machine)
    {
        machine = new MachineAddress(address.Value);
        return TryToOffset(address.Value, 1, out _);
    }

    /// <summary>An 8-byte word of RAM, for plain and interlocked access.</summary>
    /// <param name="address">A multiple of 8.</param>
    /// <exception cref="GuestMemoryException">It is not RAM.</exception>
    internal ref ulong Word(GuestPhysicalAddress address)
    {
        if (!TryToOffset(address.Value, sizeof(ulong), out ulong offset))
        {
            throw new GuestMemoryException("access", address, sizeof(ulong), Size);
        }

        return ref memory.Word(offset);
    }

    /// <summary>Reads a value of RAM.</summary>
    internal T Read<T>(GuestPhysicalAddress address)
        where T : unmanaged => MemoryMarshal.Read<T>(Slice(address, Unsafe.SizeOf<T>()));

    /// <summary>Writes a value to RAM.</summary>
    internal void Write<T>(GuestPhysicalAddress address, T value)
        where T : unmanaged => MemoryMarshal.Write(Slice(address, Unsafe.SizeOf<T>()), in value);

    /// <inheritdoc/>
    public void Dispose() => memory.Dispose();

    private bool TryToOffset(ulong address, ulong length, out ulong offset)
    {
        offset = address;
        if (address < lowSize)
        {
            return length <= lowSize - address;
        }

        offset = address - MachineLayout.HighRamBase + lowSize;
        return address >= MachineLayout.HighRamBase && offset < memory.Size && length <= memory.Size - offset;
    }
}
