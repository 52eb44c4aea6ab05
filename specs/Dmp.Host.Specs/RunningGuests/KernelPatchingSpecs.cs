namespace Dmp.Host.Specs.RunningGuests;

/// <summary>A guest kernel that patches its own code and looks at its own stacks finds what it would find on a CPU.</summary>
[Collection(GuestCollection.Name)]
[Trait("needs", "fast kvm")]
public class KernelPatchingSpecs
{
    /// <summary>Parts of the workloads that patch all functions: they take minutes where each sensitive instruction exits.</summary>
    private const string TooSlow = "unfiltered,all-events";

    [SkippableTheory(DisplayName = "Tracers, events, static keys and probes patch the guest's kernel, and what they record is the kernel's own")]
    [InlineData("trap", TooSlow + ",kprobes-dense")]
    [InlineData("dmp", TooSlow)]
    public async Task PatchesItself(string mode, string skipped)
    {
        DmpResult result = await DmpProcess.BootAsync(
            mode,
            $"quiet dmp.work=tracing,modules,stacks dmp.n=1 dmp.skip={skipped}",
            ["--timeout", "240"]);

        result.ShouldExitWith(0);
        string[] lines = result.Output.ReplaceLineEndings("\n").Split('\n');
        Assert.Contains("tracing ok", lines);
        Assert.Contains("modules ok", lines);
        Assert.Contains("stacks ok", lines);
        Assert.Contains("dmesg: 0 complaints", lines);
        Assert.Contains("WORK DONE", lines);
        Assert.Empty(result.Complaints());
    }
}
