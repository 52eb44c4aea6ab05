using System.Runtime.InteropServices;
using Dmp.Actors.Machine;

namespace Dmp.Host.Running;

/// <summary>
/// Turns the signals that end a process into the end of the run, so that there is a report. The second one ends the process at once.
/// </summary>
internal sealed class EndingSignals : IDisposable
{
    private readonly List<PosixSignalRegistration> registrations = [];
    private int received;

    public EndingSignals(MachineRun run)
    {
        // Numbers as in signal(7).
        Register(run, PosixSignal.SIGHUP, 1);
        Register(run, PosixSignal.SIGINT, 2);
        Register(run, PosixSignal.SIGQUIT, 3);
        Register(run, PosixSignal.SIGTERM, 15);
    }

    /// <inheritdoc />
    public void Dispose() => registrations.ForEach(registration => registration.Dispose());

    private void Register(MachineRun run, PosixSignal signal, int number) =>
        registrations.Add(PosixSignalRegistration.Create(signal, context =>
        {
            if (Interlocked.Exchange(ref received, number) == 0)
            {
                context.Cancel = true;
                run.End(signal.ToString(), ExitCodes.SignalBase + number);
            }
        }));
}
