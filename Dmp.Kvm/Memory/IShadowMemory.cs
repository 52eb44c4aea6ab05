namespace Dmp.Kvm.Memory;

/// <summary>
/// Where shadow tables live. A slot is one entry: table number times 512 plus index. The two ways to change an entry differ because
/// a KVM that itself shadows our tables sees an entry that becomes present, or gains rights, when the access faults, but sees one
/// that is removed only when code inside the VM writes it (docs/memory.md).
/// </summary>
internal interface IShadowMemory
{
    /// <summary>Number of tables.</summary>
    int Tables { get; }

    /// <summary>Machine address of table 0; the others follow.</summary>
    ulong MachineBase { get; }

    /// <summary>Reads an entry.</summary>
    ulong Get(int slot);

    /// <summary>Writes an entry that was absent, or widens the rights of a present one with the same frame.</summary>
    void Set(int slot, ulong entry);

    /// <summary>Makes entries absent, for the vCPU as well: when it returns, no access goes through them any more.</summary>
    /// <param name="slots">Slots, in any order; sorted in place.</param>
    void Clear(Span<int> slots);
}
