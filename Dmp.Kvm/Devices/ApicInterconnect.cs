namespace Dmp.Kvm.Devices;

/// <summary>
/// The bus between the APICs: finds out whom a message is for, and carries EOIs of level-triggered interrupts to the I/O APIC.
/// Any thread; no locks of its own, no allocation.
/// </summary>
public sealed class ApicInterconnect
{
    private LocalApic[] apics = [];
    private int lastLowest;

    /// <summary>Takes the EOI of a level-triggered vector. Set while the machine is built.</summary>
    internal Action<byte>? LevelEndOfInterrupt { get; set; }

    /// <summary>The local APICs, by index.</summary>
    public IReadOnlyList<LocalApic> Apics => apics;

    /// <summary>Delivers a message of a device.</summary>
    /// <returns>Whether a local APIC accepted it.</returns>
    public bool Deliver(in InterruptMessage message) => Deliver(message, DestinationShorthand.None, null);

    internal void Add(LocalApic apic) => apics = [.. apics, apic];

    /// <summary>Delivers a message of a local APIC (or, without a sender, of a device).</summary>
    internal bool Deliver(in InterruptMessage message, DestinationShorthand shorthand, LocalApic? sender)
    {
        if (message.Mode == DeliveryMode.LowestPriority)
        {
            return Lowest(message, shorthand, sender)?.Accept(message) ?? false;
        }

        bool accepted = false;
        foreach (LocalApic apic in apics)
        {
            if (IsFor(apic, message, shorthand, sender))
            {
                accepted |= apic.Accept(message);
            }
        }

        return accepted;
    }

    private static bool IsFor(LocalApic apic, in InterruptMessage message, DestinationShorthand shorthand, LocalApic? sender) =>
        shorthand switch
        {
            DestinationShorthand.Self => apic == sender,
            DestinationShorthand.AllIncludingSelf => true,
            DestinationShorthand.AllExcludingSelf => apic != sender,
            _ => apic.Matches(message.Destination, message.Logical),
        };

    // Among equals the turn goes round, so that an idle machine's interrupts do not all meet on one vCPU.
    private LocalApic? Lowest(in InterruptMessage message, DestinationShorthand shorthand, LocalApic? sender)
    {
        LocalApic? lowest = null;
        int first = Volatile.Read(ref lastLowest) + 1;
        for (int i = 0; i < apics.Length; i++)
        {
            LocalApic apic = apics[(first + i) % apics.Length];
            if (apic.AcceptsFixed && IsFor(apic, message, shorthand, sender) &&
                (lowest is null || apic.ProcessorPriority < lowest.ProcessorPriority))
            {
                lowest = apic;
            }
        }

        if (lowest is not null)
        {
            Volatile.Write(ref lastLowest, lowest.Index);
        }

        return lowest;
    }
}
