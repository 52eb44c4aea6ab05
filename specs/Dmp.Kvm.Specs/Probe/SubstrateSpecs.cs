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
    public void Removals(bool seen, double nanoseconds, bool flush) => Assert.Equal(flush, Host(true, seen, nanoseconds).RemovalsNeedFlush);

    [Theory(DisplayName = "A host where guests cannot run is told from others, and the probe says nothing but why")]
    [InlineData(true, true, NativeNanoseconds, true)]
    [InlineData(true, false, EmulatedNanoseconds, true)]
    [InlineData(true, false, NativeNanoseconds, false)]
    [InlineData(false, true, NativeNanoseconds, false)]
    public void Supported(bool fills, bool removals, double nanoseconds, bool supported)
    {
        Substrate host = Host(fills, removals, nanoseconds);
        Assert.Equal(supported, host.Unsupported is null);
        Assert.Equal(supported, SubstrateProbe.Strategies(host).Count > 1);
    }

    private static Substrate Host(bool fillsSeen, bool removalsSeen, double nanoseconds) => new()
    {
        MonitorInstructionNanoseconds = nanoseconds,
        ExitMicroseconds = 1,
        HostRemovalsSeen = removalsSeen,
        HostFillsSeen = fillsSeen,
        SyscallEntersCpl0 = true,
        UserCpuidIsHosts = false,
        UserFsGsBase = true,
        TscOffset = 0,
        TscFrequency = 1,
    };
}
