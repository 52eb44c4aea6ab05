namespace Dmp.Host.Specs.RunningGuests;

/// <summary>Specs that boot the guest, one at a time and with nothing beside them. Their trait "needs" is explained in specs/nested.</summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public sealed class GuestCollection
{
    public const string Name = "guests on /dev/kvm";
}
