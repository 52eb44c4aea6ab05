using Dmp.Kvm.Devices;

namespace Dmp.Kvm.Machine;

/// <summary>
/// What devices ask of the machine: the first terminal request wins and every vCPU leaves guest code; kicks go to the vCPUs. Any thread,
/// also under device locks; never calls back into a device.
/// </summary>
internal sealed class MachineControl : IMachineControl
{
    // Written once, before the first vCPU runs.
    private Vcpu[] vcpus = [];

    // Set once, by compare-exchange; read with Volatile by every vCPU after each exit.
    private VcpuStop? stop;

    // A bit for each vCPU that is halted with interrupts off. Interlocked.
    private uint deadHalts;

    /// <summary>The terminal stop that was requested, or null.</summary>
    internal VcpuStop? Stop => Volatile.Read(ref stop);

    /// <summary>Says which vCPUs there are.</summary>
    internal void Attach(Vcpu[] all) => vcpus = all;

    /// <inheritdoc/>
    public void PowerOff() => End(new VcpuStop.PoweredOff());

    /// <inheritdoc/>
    public void Reset(string how) => End(new VcpuStop.Reset(how));

    /// <inheritdoc/>
    public void DebugExit(uint value) => End(new VcpuStop.DebugExit(value));

    /// <inheritdoc/>
    public void Kick(int vcpu) => vcpus[vcpu].Kick();

    /// <inheritdoc/>
    public void KickAt(int vcpu, long nanoseconds) => vcpus[vcpu].KickAt(nanoseconds);

    /// <summary>A vCPU is halted with interrupts off, or is not any more. Its thread.</summary>
    /// <returns>A bit for each vCPU of which that is so.</returns>
    internal uint NoteDeadHalt(int vcpu, bool halted) => halted
        ? Interlocked.Or(ref deadHalts, 1u << vcpu) | (1u << vcpu)
        : Interlocked.And(ref deadHalts, ~(1u << vcpu));

    private void End(VcpuStop why)
    {
        if (Interlocked.CompareExchange(ref stop, why, null) == null)
        {
            foreach (Vcpu vcpu in vcpus)
            {
                vcpu.Kick();
            }
        }
    }
}
