using Dmp.Actors.Machine;

namespace Dmp.Host;

/// <summary>Exit codes, as scripts rely on them.</summary>
internal static class ExitCodes
{
    /// <summary>The guest powered off, or the text of --until was seen.</summary>
    public const int Success = 0;

    /// <summary>Wrong usage or unusable input.</summary>
    public const int Usage = 2;

    /// <summary>This host cannot run a machine.</summary>
    public const int HostUnsupported = 3;

    /// <summary>The guest failed.</summary>
    public const int GuestFailed = 4;

    /// <summary>The time was up.</summary>
    public const int Timeout = 5;

    /// <summary>Our own failure (EX_SOFTWARE of sysexits.h).</summary>
    public const int OwnFailure = 70;

    /// <summary>Ended by a signal: this plus its number, as shells report it.</summary>
    public const int SignalBase = 128;

    /// <summary>The exit code that goes with an outcome.</summary>
    public static int Of(RunOutcome outcome) => outcome switch
    {
        RunOutcome.PoweredOff or RunOutcome.UntilSeen => Success,
        RunOutcome.DebugExit exit => (int)((exit.Value << 1) | 1) & byte.MaxValue,
        RunOutcome.EndedByUser user => user.ExitCode,
        RunOutcome.GuestFailed => GuestFailed,
        RunOutcome.TimedOut => Timeout,
        _ => OwnFailure,
    };
}
