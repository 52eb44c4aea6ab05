using Akka.Actor;
using Dmp.Actors.Exits;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Console;

/// <summary>
/// Takes the guest's output on a thread of its own, looks for marks, and puts both on the tape. The counters are sampled here,
/// the moment a mark is seen, so that neither a mailbox nor a restart delays a phase cut. Outlives its actor's restarts.
/// </summary>
internal sealed class ConsolePump(ISerialConsole console, ConsoleWatcher watcher, ExitSampler sampler, ConsoleTape tape)
{
    private const int BufferSize = 16 * 1024;

    private volatile bool finishing;
    private bool started;

    /// <summary>Starts the thread; later calls (after a restart) do nothing.</summary>
    public void Start(IActorRef owner)
    {
        if (!started)
        {
            started = true;
            new Thread(() => Loop(owner)) { Name = "console", IsBackground = true }.Start();
        }
    }

    /// <summary>The vCPUs have stopped: take what is left, then end.</summary>
    public void Finish()
    {
        finishing = true;
        console.EndWait();
    }

    private void Loop(IActorRef owner)
    {
        try
        {
            byte[] buffer = new byte[BufferSize];
            while (true)
            {
                // Read before taking: what was written before the vCPUs stopped is then found by this round at the latest.
                bool last = finishing;
                int taken = console.TakeOutput(buffer);
                if (taken > 0)
                {
                    var marks = new List<ConsoleMark>();
                    watcher.Feed(buffer.AsSpan(0, taken), marks);
                    Append(buffer.AsSpan(0, taken).ToArray(), marks, owner);
                }
                else if (last)
                {
                    break;
                }
                else
                {
                    console.WaitForOutput(Timeout.InfiniteTimeSpan);
                }
            }

            var unfinished = new List<ConsoleMark>();
            watcher.Finish(unfinished);
            Append(Array.Empty<byte>(), unfinished, owner);
        }
        catch (Exception failure)
        {
            owner.Tell(new ConsoleProtocol.PumpFailed(failure));
        }
        finally
        {
            tape.Finish();
            owner.Tell(ConsoleProtocol.OutputReady.Instance);
        }
    }

    private void Append(ReadOnlyMemory<byte> bytes, List<ConsoleMark> marks, IActorRef owner)
    {
        tape.Append(new TapePiece(bytes, [.. marks.Select(mark => new StampedMark(mark, sampler.Sample()))]));
        owner.Tell(ConsoleProtocol.OutputReady.Instance);
    }
}
