using Akka.Actor;
using Akka.Event;

namespace Dmp.Actors.Logging;

/// <summary>Akka's log on stderr, one event a line: stdout belongs to the guest's console.</summary>
public sealed class StderrLogger : MinimalLogger
{
    /// <summary>
    /// Where the log goes when it is not the runtime's own stderr, whose first use changes the terminal's settings. Akka creates
    /// loggers by name, so there is no constructor to give it to.
    /// </summary>
    public static TextWriter? Output { get; set; }

    /// <inheritdoc />
    protected override void Log(object message) => (Output ?? System.Console.Error).WriteLine($"dmp: {message}");
}
