using Dmp.Actors.Logging;
using Dmp.Host.Terminal;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Probe;
using Spectre.Console;

namespace Dmp.Host;

/// <summary>Everything the verbs touch outside of themselves, so that specs can run a verb in-process.</summary>
internal sealed record HostEnvironment
{
    /// <summary>Input for the guest.</summary>
    public required Stream Input { get; init; }

    /// <summary>Guest output, and nothing else while a guest runs.</summary>
    public required Stream Output { get; init; }

    /// <summary>Results for people and scripts, of verbs whose guest does not own stdout.</summary>
    public required TextWriter Text { get; init; }

    /// <summary>Everything else of ours.</summary>
    public required TextWriter Error { get; init; }

    /// <summary>Tables where <see cref="Text"/> goes.</summary>
    public required Func<IAnsiConsole> TextConsole { get; init; }

    /// <summary>A live display where <see cref="Error"/> goes.</summary>
    public required Func<IAnsiConsole> ErrorConsole { get; init; }

    /// <summary>Whether <see cref="Input"/> is a terminal.</summary>
    public bool InputIsTerminal { get; init; }

    /// <summary>Whether <see cref="Text"/> is a terminal.</summary>
    public bool TextIsTerminal { get; init; }

    /// <summary>Whether <see cref="Error"/> is a terminal.</summary>
    public bool ErrorIsTerminal { get; init; }

    /// <summary>Whether failures of ours are shown in full (DMP_DEBUG=1).</summary>
    public bool Debug { get; init; }

    /// <summary>Path of akka.hocon.</summary>
    public required string SettingsPath { get; init; }

    /// <summary>Path of the script that builds the demo guest.</summary>
    public required string GuestBuildPath { get; init; }

    /// <summary>Creates machines.</summary>
    public required Func<MachineConfiguration, IMachine> CreateMachine { get; init; }

    /// <summary>Measures this host.</summary>
    public required Func<ProbeReport> Probe { get; init; }

    /// <summary>Throws where no machine could run: before a verb prepares much for one.</summary>
    public required Action RequireKvm { get; init; }

    /// <summary>The environment of this process.</summary>
    public static HostEnvironment Real()
    {
        // Set by the launcher; without it the binary stands where the build has put it, inside of the project.
        string root = Environment.GetEnvironmentVariable("DMP_ROOT") ?? FindRoot(AppContext.BaseDirectory);
        string settings = Path.Combine(root, "akka.hocon");
        TextWriter error = Writer(DescriptorStream.Error);
        StderrLogger.Output = error;
        return new HostEnvironment
        {
            Input = DescriptorStream.Input,
            Output = DescriptorStream.Output,
            Text = Writer(DescriptorStream.Output),
            Error = error,

            // Only verbs without a guest on the terminal show tables, so here the runtime may have it: it knows the width.
            TextConsole = () => Ansi(Console.Out),
            ErrorConsole = () => Ansi(Console.Error),
            InputIsTerminal = !Console.IsInputRedirected,
            TextIsTerminal = !Console.IsOutputRedirected,
            ErrorIsTerminal = !Console.IsErrorRedirected,
            Debug = Environment.GetEnvironmentVariable("DMP_DEBUG") == "1",
            SettingsPath = File.Exists(settings) ? settings : Path.Combine(AppContext.BaseDirectory, "akka.hocon"),
            GuestBuildPath = Path.Combine(root, "guest", "build"),
            CreateMachine = VirtualMachine.Create,
            Probe = SubstrateProbe.Run,
            RequireKvm = SubstrateProbe.RequireKvm,
        };
    }

    private static TextWriter Writer(Stream stream) => TextWriter.Synchronized(new StreamWriter(stream) { AutoFlush = true });

    private static IAnsiConsole Ansi(TextWriter writer) =>
        AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(writer) });

    private static string FindRoot(string from)
    {
        for (DirectoryInfo? directory = new(from); directory is not null; directory = directory.Parent)
        {
            if (File.Exists(Path.Combine(directory.FullName, "Dmp.sln")))
            {
                return directory.FullName;
            }
        }

        return from;
    }
}
