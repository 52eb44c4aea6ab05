using Dmp.Kvm.Probe;

namespace Dmp.Kvm.Specs.Probe;

public class SubstrateSpecs
{
    private const double NativeNanoseconds = 4;
    private const double EmulatedNanoseconds = 900;

    // The last but one is a KVM that shadows our tables and runs CPL 0 natively (kvm_intel.ept=0): it lets a table be written to, and
    // keeps what it has read from it until the next flush.
    [Theory(DisplayName = "Removals are followed by a flush wherever CPL 0 is native, and wherever the hardware walks our tables")]
    [InlineData(true, NativeNanoseconds, true)]
    [InlineData(true, EmulatedNanoseconds, true)]
    [InlineData(false, NativeNanoseconds, true)]
    [InlineData(false, EmulatedNanoseconds, false)]
    public void Removals(bool seen, double nanoseconds, bool flush) => Assert.Equal(flush, new Substrate
    {
        MonitorInstructionNanoseconds = nanoseconds,
        ExitMicroseconds = 1,
        HostRemovalsSeen = seen,
        HostFillsSeen = true,
        SyscallEntersCpl0 = true,
        UserCpuidIsHosts = false,
        UserFsGsBase = true,
        TscOffset = 0,
        TscFrequency = 1,
    }.RemovalsNeedFlush);
}
