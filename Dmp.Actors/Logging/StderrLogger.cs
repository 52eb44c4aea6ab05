using Akka.Actor;
using Akka.Event;

namespace Dmp.Actors.Logging;

/// <summary>Akka's log on stderr, one event a line: stdout belongs to the guest's console.</summary>
public sealed class StderrLogger : MinimalLogger
{
    /// <inheritdoc />
    protected override void Log(object message)
    {
        if (message is LogEvent logged)
        {
            System.Console.Error.WriteLine($"dmp: {logged}");
        }
        else
        {
            System.Console.Error.WriteLine($"dmp: {message}");
        }
    }
}
