using Akka.Actor;
using Dmp.Actors.Exits;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Console;

/// <summary>
/// Brings the guest's output to the sink and input to the guest, and tells its parent what stands on the console. Everything that
/// must survive a restart lives on the tape and in the pump, which it is lent.
/// </summary>
public sealed class ConsoleActor : ReceiveActor, IWithTimers
{
    // A guest that never stops writing must not keep input and the drain waiting.
    private const int PiecesAtOnce = 64;

    private readonly ISerialConsole console;
    private readonly IConsoleSink sink;
    private readonly ConsoleTape tape;
    private readonly ConsolePump pump;
    private readonly ControlSettings settings;

    private ConsoleActor(ISerialConsole console, IConsoleSink sink, ConsoleTape tape, ConsolePump pump, ControlSettings settings)
    {
        this.console = console;
        this.sink = sink;
        this.tape = tape;
        this.pump = pump;
        this.settings = settings;
        Receive<ConsoleProtocol.OutputReady>(_ => Deliver());
        Receive<ConsoleProtocol.RetryInput>(_ => OfferInput());
        Receive<ConsoleProtocol.Input>(TakeInput);
        Receive<ConsoleProtocol.Drain>(StartDrain);
        Receive<ConsoleProtocol.PumpFailed>(failed => Context.Parent.Tell(failed));
    }

    /// <inheritdoc />
    public ITimerScheduler Timers { get; set; } = null!;

    /// <summary>How to create the actor of a console.</summary>
    /// <param name="console">The console.</param>
    /// <param name="sink">Where output goes.</param>
    /// <param name="until">Text to watch for, or null.</param>
    /// <param name="sampler">Counters to stamp marks with.</param>
    /// <param name="settings">How soon input is offered again.</param>
    public static Props Props(
        ISerialConsole console, IConsoleSink sink, string? until, ExitSampler sampler, ControlSettings settings)
    {
        // Created here, once, and not in the actor: a restart makes a new actor from these same props.
        var tape = new ConsoleTape();
        var pump = new ConsolePump(console, new ConsoleWatcher(until), sampler, tape);
        return Akka.Actor.Props.CreateBy(new Producer(() => new ConsoleActor(console, sink, tape, pump, settings)))
            .WithDispatcher(ControlSettings.Dispatcher);
    }

    /// <inheritdoc />
    protected override void PreStart()
    {
        pump.Start(Self);

        // After a restart the wake-up for what is on the tape may have been lost with the message that failed.
        Self.Tell(ConsoleProtocol.OutputReady.Instance);
        Self.Tell(ConsoleProtocol.RetryInput.Instance);
    }

    private void Deliver()
    {
        for (int pieces = 0; pieces < PiecesAtOnce; pieces++)
        {
            // In this order: once the tape is finished, what Peek does not show was never written.
            bool finished = tape.Finished;
            if (tape.Peek() is not { } piece)
            {
                if (finished)
                {
                    AnswerDrain();
                }

                return;
            }

            if (!piece.Bytes.IsEmpty)
            {
                sink.Write(piece.Bytes);
            }

            tape.Advance();
            foreach (StampedMark mark in piece.Marks)
            {
                Context.Parent.Tell(new ConsoleProtocol.Marked(mark.Mark, mark.At));
            }
        }

        Self.Tell(ConsoleProtocol.OutputReady.Instance);
    }

    private void TakeInput(ConsoleProtocol.Input input)
    {
        if (tape.Draining)
        {
            Sender.Tell(new ConsoleProtocol.InputDropped(input.RequestId, input.Bytes.Length));
            return;
        }

        tape.Input.AddLast(new PendingInput(input.RequestId, Sender, input.Bytes));
        OfferInput();
    }

    private void OfferInput()
    {
        while (tape.Input.First is { } first)
        {
            PendingInput pending = first.Value;
            int taken = console.PutInput(pending.Bytes.Span);
            if (taken < pending.Bytes.Length)
            {
                first.Value = pending with { Bytes = pending.Bytes[taken..] };
                Timers.StartSingleTimer(nameof(ConsoleProtocol.RetryInput), ConsoleProtocol.RetryInput.Instance, settings.InputRetry);
                return;
            }

            tape.Input.RemoveFirst();
            pending.From.Tell(new ConsoleProtocol.InputTaken(pending.RequestId));
        }
    }

    private void StartDrain(ConsoleProtocol.Drain drain)
    {
        // The guest will not read any more.
        foreach (PendingInput pending in tape.Input)
        {
            pending.From.Tell(new ConsoleProtocol.InputDropped(pending.RequestId, pending.Bytes.Length));
        }

        tape.Input.Clear();
        tape.Draining = true;
        tape.Drain = (drain.RequestId, Sender);
        pump.Finish();
        Self.Tell(ConsoleProtocol.OutputReady.Instance);
    }

    private void AnswerDrain()
    {
        if (tape.Drain is { } drain)
        {
            tape.Drain = null;
            drain.From.Tell(new ConsoleProtocol.Drained(drain.RequestId));
        }
    }

    private sealed class Producer(Func<ConsoleActor> create) : IIndirectActorProducer
    {
        public Type ActorType => typeof(ConsoleActor);

        public ActorBase Produce() => create();

        public void Release(ActorBase actor)
        {
        }
    }
}
