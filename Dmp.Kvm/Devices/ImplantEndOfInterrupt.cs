using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Devices;

/// <summary>
/// Lets implants end interrupts without an exit, as KVM's PV EOI does: before each entry the VMM says in the vCPU's page whether the end
/// of the interrupt in service has no effect but that; the implant takes the permission back, which is all that it does; and behind
/// each exit, before anybody looks at the local APIC, the VMM finds it gone and ends the interrupt. The vCPU's thread.
/// </summary>
/// <remarks>
/// <para>
/// While the guest runs with the permission, ISR and PPR may be those of before the end, so a request that another thread posts then may
/// seem to be held back when it is not. It is not late all the same: whoever adds a bit to IRR kicks the vCPU, whatever PPR is
/// (<see cref="LocalApic.Accept"/>), and a kick between <see cref="BeforeEntry"/> and the entry is pending and ends the entry at once. So
/// each new request leads to <see cref="AfterExit"/> and then to <see cref="BeforeEntry"/>. Either the guest had ended its interrupt:
/// then that is done, PPR falls, and the request is delivered. Or it had not: then there is a request that this end would release, the
/// permission is not given again, and the end exits. A bit that was in IRR before did have its kick, and either that is still to come
/// or <see cref="BeforeEntry"/> has seen the bit. What the vCPU's thread posts itself, it posts between the two.
/// </para>
/// <para>
/// The implant reads and clears in one instruction. If it were two, an exit between them could find the permission unused, and not
/// give it again because of a new request, and the end would be lost. With one, the permission is either not touched yet, and the
/// implant sees what the next entry says, or it is gone, and the interrupt is over whatever happens next.
/// </para>
/// <para>
/// Other threads see PPR too late when they look for the processor with the lowest priority. That costs a bad choice, nothing else.
/// </para>
/// </remarks>
internal sealed class ImplantEndOfInterrupt(LocalApic apic, VcpuPage page)
{
    private bool permitted;

    /// <summary>The guest is about to run: it may end its interrupt itself, or not.</summary>
    internal void BeforeEntry()
    {
        permitted = apic.HasSimpleEndOfInterrupt;
        page[VcpuPageField.SimpleEndOfInterrupt] = permitted ? 1UL : 0;
    }

    /// <summary>The guest has run: does what it has left to do.</summary>
    internal void AfterExit()
    {
        if (permitted && page[VcpuPageField.SimpleEndOfInterrupt] == 0)
        {
            apic.EndSimply();
        }

        permitted = false;
    }
}
