namespace Dmp.Host.Specs.RunningGuests;

/// <summary>Specs that boot the guest, one at a time and with nothing beside them. Those that take long have a trait: see specs/nested.</summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public sealed class GuestCollection
{
    public const string Name = "guests on /dev/kvm";
}
