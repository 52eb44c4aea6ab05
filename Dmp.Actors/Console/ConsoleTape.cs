using System.Collections.Concurrent;
using System.Collections.Immutable;
using Akka.Actor;
using Dmp.Actors.Exits;

namespace Dmp.Actors.Console;

/// <summary>A mark and the counters when it was seen.</summary>
/// <param name="Mark">What was seen.</param>
/// <param name="At">Counters at that moment.</param>
internal sealed record StampedMark(ConsoleMark Mark, ExitSample At);

/// <summary>A piece of output with what was found in it.</summary>
/// <param name="Bytes">The bytes.</param>
/// <param name="Marks">What was found, in order.</param>
internal sealed record TapePiece(ReadOnlyMemory<byte> Bytes, ImmutableArray<StampedMark> Marks);

/// <summary>Input that the guest has not taken entirely.</summary>
/// <param name="RequestId">Id of the request.</param>
/// <param name="From">Who gets the answer.</param>
/// <param name="Bytes">What is left.</param>
internal sealed record PendingInput(long RequestId, IActorRef From, ReadOnlyMemory<byte> Bytes);

/// <summary>
/// What must survive a restart of the console actor: output that has not reached the sink, input that has not reached the guest.
/// A piece leaves the tape only after the sink took it, so a failure in between neither loses nor repeats a byte.
/// </summary>
internal sealed class ConsoleTape
{
    private readonly ConcurrentQueue<TapePiece> output = new();
    private volatile bool finished;

    /// <summary>Whether the guest's last output is on the tape.</summary>
    public bool Finished => finished;

    /// <summary>Whether the drain was asked for: the guest takes no more input. Only the actor touches it.</summary>
    public bool Draining { get; set; }

    /// <summary>Who asked for the drain, and is owed an answer. Only the actor touches it.</summary>
    public (long RequestId, IActorRef From)? Drain { get; set; }

    /// <summary>Input in the order it came. Only the actor touches it.</summary>
    public LinkedList<PendingInput> Input { get; } = new();

    /// <summary>Appends output. Only the pump.</summary>
    public void Append(TapePiece piece) => output.Enqueue(piece);

    /// <summary>Says that nothing will be appended any more. Only the pump.</summary>
    public void Finish() => finished = true;

    /// <summary>The oldest piece, left in place. Only the actor.</summary>
    public TapePiece? Peek() => output.TryPeek(out TapePiece? piece) ? piece : null;

    /// <summary>Drops the oldest piece. Only the actor.</summary>
    public void Advance() => output.TryDequeue(out _);
}
