namespace Dmp.Kvm.Devices;

/// <summary>One entry of the I/O APIC's redirection table (Intel 82093AA data sheet, 3.2.4).</summary>
/// <param name="Bits">The 64 bits.</param>
internal readonly record struct RedirectionEntry(ulong Bits)
{
    private const int ModeShift = 8;
    private const ulong ModeMask = 7;
    private const int DestinationShift = 56;

    /// <summary>What the entry holds after reset.</summary>
    public static readonly RedirectionEntry Reset = new((ulong)Flags.Masked);

    [Flags]
    private enum Flags : ulong
    {
        LogicalDestination = 1UL << 11,
        DeliveryStatus = 1UL << 12,
        ActiveLow = 1UL << 13,
        RemoteIrr = 1UL << 14,
        LevelTriggered = 1UL << 15,
        Masked = 1UL << 16,
        ReadOnly = DeliveryStatus | RemoteIrr,
        Implemented = 0xFF00_0000_0001_FFFF,
    }

    public byte Vector => (byte)Bits;

    public bool IsMasked => Has(Flags.Masked);

    public bool IsLevelTriggered => Has(Flags.LevelTriggered);

    /// <summary>A local APIC has accepted the level-triggered interrupt and not ended it yet.</summary>
    public bool RemoteIrr => Has(Flags.RemoteIrr);

    public InterruptMessage Message => new(
        InterruptMessage.Widen((byte)(Bits >> DestinationShift)),
        Has(Flags.LogicalDestination),
        (DeliveryMode)((Bits >> ModeShift) & ModeMask),
        Vector,
        IsLevelTriggered);

    public RedirectionEntry WithRemoteIrr(bool value) =>
        new(value ? Bits | (ulong)Flags.RemoteIrr : Bits & ~(ulong)Flags.RemoteIrr);

    /// <summary>The entry after the guest wrote new bits. Making it edge-triggered forgets an unfinished level interrupt.</summary>
    public RedirectionEntry Written(ulong value)
    {
        const ulong Writable = (ulong)(Flags.Implemented & ~Flags.ReadOnly);
        RedirectionEntry entry = new((value & Writable) | (Bits & (ulong)Flags.ReadOnly));
        return entry.IsLevelTriggered ? entry : entry.WithRemoteIrr(false);
    }

    private bool Has(Flags flag) => (Bits & (ulong)flag) != 0;
}
