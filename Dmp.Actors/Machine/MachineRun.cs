using Akka.Actor;
using Dmp.Actors.Console;
using Dmp.Actors.Exits;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Machine;

/// <summary>
/// A machine that runs, seen from outside of the actors. Write the report when <see cref="Completion"/> is there; disposing takes
/// down the actors and then, last of all, the machine.
/// </summary>
public sealed class MachineRun : IAsyncDisposable
{
    private readonly IMachine machine;
    private readonly ActorSystem system;
    private readonly IActorRef supervisor;
    private long lastRequestId;

    private MachineRun(IMachine machine, ActorSystem system, IActorRef supervisor, Task<MachineResult> completion)
    {
        this.machine = machine;
        this.system = system;
        this.supervisor = supervisor;
        Completion = completion;
    }

    /// <summary>How many vCPUs it has.</summary>
    public int Cpus => machine.Vcpus.Count;

    /// <summary>The result. Never faults: a failure of ours is an outcome too.</summary>
    public Task<MachineResult> Completion { get; }

    /// <summary>Starts a machine.</summary>
    /// <param name="machine">The machine; from now on this object's to dispose.</param>
    /// <param name="options">What the run is to do.</param>
    /// <param name="settings">Settings of akka.hocon.</param>
    public static MachineRun Start(IMachine machine, RunOptions options, ControlSettings settings)
    {
        ArgumentNullException.ThrowIfNull(settings);
        var completion = new TaskCompletionSource<MachineResult>(TaskCreationOptions.RunContinuationsAsynchronously);
        var system = ActorSystem.Create("dmp", settings.Configuration);
        IActorRef supervisor = system.ActorOf(MachineSupervisor.Props(machine, options, settings, completion), "machine");
        return new MachineRun(machine, system, supervisor, completion.Task);
    }

    /// <summary>Ends the run on behalf of the user; the result follows.</summary>
    /// <param name="how">Which way: "Ctrl-a x", "SIGTERM".</param>
    /// <param name="exitCode">Exit code that goes with it.</param>
    public void End(string how, int exitCode) =>
        supervisor.Tell(new MachineProtocol.End(new RunCause.EndedByUser(how, exitCode)));

    /// <summary>How far the run is.</summary>
    /// <param name="cancellation">Gives up waiting.</param>
    public Task<ExitProtocol.Totals> ProgressAsync(CancellationToken cancellation) =>
        supervisor.Ask<ExitProtocol.Totals>(new ExitProtocol.GetTotals(NextId()), Timeout.InfiniteTimeSpan, cancellation);

    /// <summary>Sends input to the guest; complete when the guest's receive queue has taken it or the run is over.</summary>
    /// <param name="bytes">The bytes; not to be changed afterwards.</param>
    /// <param name="cancellation">Gives up waiting.</param>
    public Task SendAsync(ReadOnlyMemory<byte> bytes, CancellationToken cancellation) =>
        supervisor.Ask<object>(new ConsoleProtocol.Input(NextId(), bytes), Timeout.InfiniteTimeSpan, cancellation);

    /// <inheritdoc />
    public async ValueTask DisposeAsync()
    {
        End("disposed", exitCode: 0);
        MachineResult result = await Completion.ConfigureAwait(false);
        await system.Terminate().ConfigureAwait(false);

        // Memory that a stuck vCPU still runs in must not go away under it; the process ends soon anyway.
        if (result.ThreadsEnded)
        {
            machine.Dispose();
        }
    }

    private long NextId() => Interlocked.Increment(ref lastRequestId);
}
