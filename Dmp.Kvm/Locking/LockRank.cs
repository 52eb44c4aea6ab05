namespace Dmp.Kvm.Locking;

/// <summary>The kinds of locks of a machine, outermost first: who holds one takes only those behind it.</summary>
public enum LockRank
{
    /// <summary>A frame becomes code, or data again. The only one that is held while other vCPUs are waited for.</summary>
    CodeChanges,

    /// <summary>What one vCPU is to drop from its virtual TLB.</summary>
    Shootdown,

    /// <summary>The scanned pages.</summary>
    CodePages,

    /// <summary>The patches of the machine.</summary>
    PatchEngine,

    /// <summary>What addresses in implants mean.</summary>
    ImplantMap,

    /// <summary>The memory of implants.</summary>
    Arena,

    /// <summary>A device that raises interrupt lines.</summary>
    Device,

    /// <summary>The 8259 pair.</summary>
    InterruptController,

    /// <summary>The I/O APIC, whose lines devices and 8259s raise.</summary>
    IoApic,

    /// <summary>Values of model-specific registers that nobody owns.</summary>
    UnownedMsrs,

    /// <summary>The deadlines of one vCPU, which every device sets.</summary>
    Timers,
}
