using Dmp.Kvm.Interop;
using Dmp.Kvm.Machine;
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

    [SkippableFact(DisplayName = "On such a KVM a machine that is not told its number of vCPUs has two, or one where the host has one")]
    public void Usual_number()
    {
        using VirtualMachine machine = TinyKernel.Load(a => a.PowerOff(), cpus: null);

        Assert.Equal(Math.Min(2, Environment.ProcessorCount), machine.Vcpus.Count);
        Assert.IsType<VcpuStop.PoweredOff>(machine.Vcpus[0].Run());
    }
}
