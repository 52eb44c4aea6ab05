using System.Diagnostics;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Machine;

/// <summary>Real time. Any thread.</summary>
/// <param name="tscFrequency">Ticks of the guest's TSC per second.</param>
/// <param name="tscOffset">What the guest's TSC reads minus what the host's does.</param>
internal sealed class MachineClock(ulong tscFrequency, ulong tscOffset) : IClock
{
    /// <inheritdoc/>
    /// <remarks>CLOCK_MONOTONIC, on which the kick timers run too.</remarks>
    public long Nanoseconds => Stopwatch.GetTimestamp();

    /// <inheritdoc/>
    public DateTimeOffset UtcNow => DateTimeOffset.UtcNow;

    /// <inheritdoc/>
    public ulong Tsc => HostTsc.Read() + tscOffset;

    /// <inheritdoc/>
    public ulong TscFrequency => tscFrequency;
}
