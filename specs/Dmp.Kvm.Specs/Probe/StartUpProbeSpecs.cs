using Dmp.Kvm.Interop;
using Dmp.Kvm.Probe;
using Dmp.Kvm.Specs.Machine;

namespace Dmp.Kvm.Specs.Probe;

/// <summary>What is found out about a KVM before a machine relies on it.</summary>
[Collection(KvmMachineCollection.Name)]
public class StartUpProbeSpecs
{
    [SkippableFact(DisplayName = "A KVM on which guests start their other CPUs is found to do so")]
    public void Works()
    {
        TinyKernel.SkipWithoutKvm();
        using KvmSystem kvm = KvmSystem.Open();

        Assert.True(StartUpProbe.Works(kvm));
    }
}
