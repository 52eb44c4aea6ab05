using Akka.Configuration;

namespace Dmp.Actors.Specs;

/// <summary>The settings file that ships, on a scheduler whose time only specs move.</summary>
internal static class Settings
{
    public static string Text { get; } = File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "akka.hocon"));

    public static ControlSettings Shipped { get; } = ControlSettings.Parse(Text);

    public static Config InVirtualTime { get; } = ConfigurationFactory
        .ParseString("""
            akka.scheduler.implementation = "Akka.TestKit.TestScheduler, Akka.TestKit"
            akka.loggers = ["Akka.TestKit.TestEventListener, Akka.TestKit"]
            """)
        .WithFallback(Shipped.Configuration);
}
