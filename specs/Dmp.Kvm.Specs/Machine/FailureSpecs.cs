using Dmp.Kvm.Machine;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Machine;

/// <summary>What comes of guests, and of our own code, that cannot go on.</summary>
[Collection(KvmMachineCollection.Name)]
public class FailureSpecs
{
    [SkippableFact(DisplayName = "An exception without an IDT is a triple fault, told with registers and code bytes")]
    public void TripleFault()
    {
        VcpuStop.GuestFailed failed = Failure(a =>
        {
            a.mov(rax, 0x0123456789ABCDEF);
            a.ud2();
        });

        Assert.Contains("triple fault", failed.Reason, StringComparison.Ordinal);
        Assert.Contains("rax 0123456789abcdef", failed.State, StringComparison.Ordinal);
        Assert.Contains("rip 000000000040000a", failed.State, StringComparison.Ordinal);
        Assert.Contains("code at rip: 0F0B", failed.State, StringComparison.Ordinal);
        Assert.Contains("vector  6 rip 0x000000000040000a", failed.State, StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "A halt that nothing can end is a failure of the guest")]
    public void HaltForGood()
    {
        VcpuStop.GuestFailed failed = Failure(a =>
        {
            a.cli();
            a.hlt();
        });

        Assert.Contains("halt", failed.Reason, StringComparison.OrdinalIgnoreCase);
        Assert.Contains("if 0", failed.State, StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "Leaving long mode is a failure of the guest that names the instruction")]
    public void CannotEmulate()
    {
        VcpuStop.GuestFailed failed = Failure(a =>
        {
            a.mov(rax, cr0);
            a.btr(eax, 31);
            a.mov(cr0, rax);
        });

        Assert.Contains("mov cr0,rax", failed.Reason, StringComparison.Ordinal);
        Assert.Contains("code at rip: 0F22C0", failed.State, StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "Running into memory that is not there is a failure of the guest")]
    public void JumpIntoNothing()
    {
        VcpuStop.GuestFailed failed = Failure(a =>
        {
            a.mov(rax, 0x7FFFFFFF0000);
            a.jmp(rax);
        });

        Assert.Contains("triple fault", failed.Reason, StringComparison.Ordinal);
        Assert.Contains("0x7fffffff0000", failed.Reason, StringComparison.Ordinal);
        Assert.Contains("code at rip: ", failed.State, StringComparison.Ordinal);
    }

    [SkippableFact(DisplayName = "An exception in the emulator comes out of Run; the vCPU can be described, and goes on")]
    public void OwnFailure()
    {
        const string Text = "nothing lost, nothing twice\n";
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            a.sti();
            a.Print(Text);
            a.pushfq();
            a.pop(r8);
            a.cli();
            a.PowerOff();
        });
        Vcpu vcpu = machine.InternalVcpus[0];
        int emulations = 0;
        vcpu.BeforeEmulation = () =>
        {
            if (++emulations % 2 == 1)
            {
                throw new InvalidOperationException("thrown by the spec");
            }
        };

        int failures = 0;
        VcpuStop? stop = null;
        while (stop is null)
        {
            try
            {
                stop = vcpu.Run();
            }
            catch (InvalidOperationException failure) when (failure.Message == "thrown by the spec")
            {
                failures++;
                Assert.Matches("rip 00000000004000[0-9a-f]{2} ", vcpu.DescribeState());
            }
        }

        Assert.IsType<VcpuStop.PoweredOff>(stop);
        Assert.Equal(Text, machine.Text());
        Assert.Equal(Text.Length + 4, failures);
        Assert.Equal(1UL << 9, machine.Registers().R8 & (1 << 9));
    }

    private static VcpuStop.GuestFailed Failure(Action<Assembler> write)
    {
        using VirtualMachine machine = TinyKernel.Load(write);
        var failed = Assert.IsType<VcpuStop.GuestFailed>(machine.Vcpus[0].Run());
        Assert.DoesNotContain('\n', failed.Reason);
        Assert.Contains("rip ", failed.State, StringComparison.Ordinal);
        Assert.Equal(failed.State, machine.Vcpus[0].DescribeState());
        return failed;
    }
}
