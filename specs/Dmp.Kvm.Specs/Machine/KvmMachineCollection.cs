namespace Dmp.Kvm.Specs.Machine;

/// <summary>Specs that run guests on /dev/kvm, one at a time and with nothing beside them. Those that take long have a trait: see specs/nested.</summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public sealed class KvmMachineCollection
{
    public const string Name = "machines on /dev/kvm";
}
