using Dmp.Kvm.Locking;

namespace Dmp.Kvm.Devices;

/// <summary>
/// The windows of memory-mapped devices that all vCPUs share (a vCPU's local APIC is its own: see
/// <see cref="Chipset.ReadMmio"/>). Registered before the first vCPU runs; after that any thread looks up without a lock and
/// without allocating. Each call into a device is made under that device's lock.
/// </summary>
public sealed class MmioBus
{
    private const int BitsPerByte = 8;

    private Window[] windows = [];
    private long unownedReads;
    private long unownedWrites;

    /// <summary>Reads that no device answered (with all ones instead). Any thread.</summary>
    public long UnownedReads => Volatile.Read(ref unownedReads);

    /// <summary>Writes that no device took. Any thread.</summary>
    public long UnownedWrites => Volatile.Read(ref unownedWrites);

    /// <summary>Gives a window to a device. Only before the first access.</summary>
    /// <param name="start">Guest physical address of the first byte.</param>
    /// <param name="length">Bytes.</param>
    /// <param name="device">The device.</param>
    /// <exception cref="ArgumentException">The window overlaps another one.</exception>
    public void Register(ulong start, ulong length, IMmioDevice device)
    {
        ArgumentNullException.ThrowIfNull(device);
        ArgumentOutOfRangeException.ThrowIfZero(length);
        foreach (Window window in windows)
        {
            if (start < window.Start + window.Length && window.Start < start + length)
            {
                throw new ArgumentException(
                    $"The window of {device.GetType().Name} at 0x{start:x} overlaps that of " +
                    $"{window.Device.GetType().Name} at 0x{window.Start:x}.",
                    nameof(start));
            }
        }

        OrderedLock gate = device is ISharedDevice shared ? shared.Gate : new OrderedLock(LockRank.Device);
        windows = [.. windows.Append(new Window(start, length, device, gate)).OrderBy(window => window.Start)];
    }

    /// <summary>Whether an address belongs to a device.</summary>
    public bool Owns(ulong address) => Find(address, 1) is not null;

    /// <summary>Reads a register. Any thread.</summary>
    /// <param name="address">Guest physical address.</param>
    /// <param name="size">1, 2, 4 or 8 bytes.</param>
    /// <returns>The value, zero-extended; all ones of the size where nobody answers.</returns>
    public ulong Read(ulong address, int size)
    {
        if (Find(address, size) is { } window)
        {
            using (window.Gate.Enter())
            {
                return window.Device.Read(address - window.Start, size) & OnesOf(size);
            }
        }

        Interlocked.Increment(ref unownedReads);
        return OnesOf(size);
    }

    /// <summary>Writes a register. Any thread.</summary>
    /// <param name="address">Guest physical address.</param>
    /// <param name="size">1, 2, 4 or 8 bytes.</param>
    /// <param name="value">The value, zero-extended.</param>
    public void Write(ulong address, int size, ulong value)
    {
        if (Find(address, size) is { } window)
        {
            using (window.Gate.Enter())
            {
                window.Device.Write(address - window.Start, size, value);
            }

            return;
        }

        Interlocked.Increment(ref unownedWrites);
    }

    private static ulong OnesOf(int size) => ulong.MaxValue >> ((sizeof(ulong) - size) * BitsPerByte);

    private Window? Find(ulong address, int size)
    {
        int low = 0;
        int high = windows.Length - 1;
        while (low <= high)
        {
            int middle = (low + high) / 2;
            Window window = windows[middle];
            if (address < window.Start)
            {
                high = middle - 1;
            }
            else if (address - window.Start >= window.Length)
            {
                low = middle + 1;
            }
            else
            {
                // An access over the window's end is nobody's.
                return address - window.Start <= window.Length - (ulong)size ? window : null;
            }
        }

        return null;
    }

    private sealed record Window(ulong Start, ulong Length, IMmioDevice Device, OrderedLock Gate);
}
