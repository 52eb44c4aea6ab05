using Dmp.Actors.Exits;

namespace Dmp.Actors.Console;

/// <summary>Messages of <see cref="ConsoleActor"/>.</summary>
public static class ConsoleProtocol
{
    /// <summary>
    /// Input for the guest. Answered with <see cref="InputTaken"/> when the guest's receive queue has all of it, or with
    /// <see cref="InputDropped"/> when the run ends before that.
    /// </summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Bytes">The bytes; not changed afterwards.</param>
    public sealed record Input(long RequestId, ReadOnlyMemory<byte> Bytes);

    /// <summary>The vCPUs have stopped: bring the rest of the output to the sink. Answered with <see cref="Drained"/>.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Drain(long RequestId);

    /// <summary>All input was taken.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record InputTaken(long RequestId);

    /// <summary>The run ended before the guest took the input.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Left">Bytes it did not take.</param>
    public sealed record InputDropped(long RequestId, int Left);

    /// <summary>Everything the guest wrote has reached the sink.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Drained(long RequestId);

    /// <summary>To the parent: a mark was seen, and everything up to it has reached the sink.</summary>
    /// <param name="Mark">What was seen.</param>
    /// <param name="At">Counters at that moment.</param>
    public sealed record Marked(ConsoleMark Mark, ExitSample At);

    /// <summary>To the parent: output can no longer be read from the machine.</summary>
    /// <param name="Failure">Why.</param>
    public sealed record PumpFailed(Exception Failure);

    /// <summary>From the pump: there is output on the tape.</summary>
    internal sealed record OutputReady
    {
        public static readonly OutputReady Instance = new();
    }

    /// <summary>Offer pending input again.</summary>
    internal sealed record RetryInput
    {
        public static readonly RetryInput Instance = new();
    }
}
