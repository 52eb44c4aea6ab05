using Dmp.Actors.Machine;

namespace Dmp.Host.Running;

/// <summary>What stderr says about a run that did not go well: one line, then the state of the vCPUs.</summary>
internal static class FailureText
{
    public static void Write(FinishedRun finished, TextWriter error)
    {
        MachineResult result = finished.Result;
        string? line = result.Outcome switch
        {
            RunOutcome.GuestFailed failed => $"the guest failed: {failed.Detail}",
            RunOutcome.TimedOut timedOut => $"timeout: {timedOut.Detail}",
            RunOutcome.VmmFailed failed => $"own failure: {failed.Detail}",
            _ => null,
        };
        if (line is not null)
        {
            error.WriteLine($"dmp: {line}");
            foreach (VcpuDescription vcpu in result.Vcpus)
            {
                error.WriteLine($"vCPU {vcpu.Vcpu}:");
                error.WriteLine(vcpu.State);
            }

            if (result.Vcpus.IsEmpty && result.Outcome is RunOutcome.GuestFailed { State: { } state })
            {
                error.WriteLine(state);
            }

            if (result.Outcome is RunOutcome.VmmFailed { Failure: { } failure })
            {
                // Where our own code failed is what a report of it needs first.
                error.WriteLine(failure);
            }
        }

        foreach (string step in result.Unfinished)
        {
            error.WriteLine($"dmp: {step}");
        }
    }
}
