using Dmp.Kvm.Locking;

namespace Dmp.Kvm.Devices;

/// <summary>
/// A device behind I/O ports. Calls may come from any vCPU thread; the bus holds the device's own lock around each call,
/// so a device needs no lock for state that only the bus touches.
/// </summary>
public interface IPortDevice
{
    /// <summary>Reads from a port.</summary>
    /// <param name="port">The absolute port number, within the range the device was registered for.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <returns>The value; the bus cuts it to the size.</returns>
    uint Read(ushort port, int size);

    /// <summary>Writes to a port.</summary>
    /// <param name="port">The absolute port number, within the range the device was registered for.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <param name="value">The value, zero-extended.</param>
    void Write(ushort port, int size, uint value);
}

/// <summary>A device behind memory-mapped registers. Locking as for <see cref="IPortDevice"/>.</summary>
public interface IMmioDevice
{
    /// <summary>Reads a register.</summary>
    /// <param name="offset">Bytes from the start of the device's window.</param>
    /// <param name="size">1, 2, 4 or 8 bytes.</param>
    /// <returns>The value; the bus cuts it to the size.</returns>
    ulong Read(ulong offset, int size);

    /// <summary>Writes a register.</summary>
    /// <param name="offset">Bytes from the start of the device's window.</param>
    /// <param name="size">1, 2, 4 or 8 bytes.</param>
    /// <param name="value">The value, zero-extended.</param>
    void Write(ulong offset, int size, ulong value);
}

/// <summary>Time as the devices see it. Virtual in specs.</summary>
public interface IClock
{
    /// <summary>Nanoseconds since an arbitrary start; never runs backwards.</summary>
    long Nanoseconds { get; }

    /// <summary>The wall clock (for the RTC).</summary>
    DateTimeOffset UtcNow { get; }

    /// <summary>The guest's time-stamp counter, as RDTSC would read it in the guest now.</summary>
    ulong Tsc { get; }

    /// <summary>Ticks of <see cref="Tsc"/> per second.</summary>
    ulong TscFrequency { get; }
}

/// <summary>What a device may ask of the machine.</summary>
public interface IMachineControl
{
    /// <summary>The guest switched the power off. The vCPU that asked leaves its run loop after this instruction.</summary>
    void PowerOff();

    /// <summary>The guest reset the machine (i8042, port 0xCF9, ACPI reset register, triple fault is separate).</summary>
    /// <param name="how">Which way it went, for people: "i8042 pulse", "port 0xcf9".</param>
    void Reset(string how);

    /// <summary>The guest wrote to the debug-exit port.</summary>
    /// <param name="value">The value written; the process exits with (value &lt;&lt; 1) | 1.</param>
    void DebugExit(uint value);

    /// <summary>
    /// A vCPU has (or may have) a new interrupt to take: makes it look, out of guest code or out of a halt. Any thread, also one
    /// that holds device locks; must not call back into a device.
    /// </summary>
    /// <param name="vcpu">Index of the vCPU.</param>
    void Kick(int vcpu);

    /// <summary>
    /// Arranges for <see cref="Kick"/> of the vCPU at a time, replacing what was arranged for it before. One kick: an arrangement is
    /// spent when its time has come, and is not taken back then. Any thread; must not call back into a device.
    /// </summary>
    /// <param name="vcpu">Index of the vCPU.</param>
    /// <param name="nanoseconds">Time on <see cref="IClock.Nanoseconds"/>, or <see cref="long.MaxValue"/> for never.</param>
    void KickAt(int vcpu, long nanoseconds);
}

/// <summary>Where a serial port's output goes.</summary>
public interface IConsoleOutput
{
    /// <summary>Takes one byte that the guest wrote. Called on a vCPU thread: must not block nor allocate.</summary>
    void Put(byte value);
}

/// <summary>Where a serial port's input comes from.</summary>
public interface IConsoleInput
{
    /// <summary>Takes the next byte typed at the host. Called on any thread, one at a time: must not block nor allocate.</summary>
    /// <returns>Whether there was one.</returns>
    bool TryTake(out byte value);
}

/// <summary>
/// A device whose state is touched from outside its bus too (a timer, an interrupt line, the host's keyboard). It brings its own
/// lock: the buses hold it around each call, and the device takes it at its other entries. A device may raise interrupt lines and
/// set timers while it holds its lock; interrupt controllers and timers never call back, so the order is always
/// device, interrupt controller, timer queue.
/// </summary>
public interface ISharedDevice
{
    /// <summary>The lock around the device's state.</summary>
    OrderedLock Gate { get; }
}
