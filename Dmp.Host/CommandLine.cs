using System.CommandLine;
using System.CommandLine.Invocation;
using System.CommandLine.Parsing;
using Dmp.Host.Terminal;
using Dmp.Host.Verbs;
using Dmp.Kvm;

namespace Dmp.Host;

/// <summary>The command line: its verbs, and one line with the right exit code for everything that goes wrong.</summary>
internal static class CommandLine
{
    private const int SignalOfBrokenPipe = 13;

    private const string Description =
        "Runs unmodified Linux guests with Dynamic Memory Paravirtualization.\n\n"
        + "'dmp demo' shows it. 'dmp test' runs the specifications.";

    /// <summary>Runs a command line.</summary>
    /// <param name="arguments">The arguments.</param>
    /// <param name="host">What the verbs touch.</param>
    /// <returns>The exit code.</returns>
    public static async Task<int> InvokeAsync(IReadOnlyList<string> arguments, HostEnvironment host)
    {
        try
        {
            var root = new RootCommand(Description)
            {
                DemoVerb.Create(host),
                RunVerb.Create(host),
                ProbeVerb.Create(host),
                PatchesVerb.Create(host),
                GuestVerb.Create(host),
            };
            root.HelpName = "dmp";
            ParseResult parsed = root.Parse(arguments);
            if (parsed.Action is ParseErrorAction)
            {
                return Usage(parsed, root, host);
            }

            var invocation = new InvocationConfiguration
            {
                Output = host.Text,
                Error = host.Error,

                // Both are done here: exceptions have exit codes, and signals end the guest before they end us.
                EnableDefaultExceptionHandler = false,
                ProcessTerminationTimeout = null,
            };
            return await parsed.InvokeAsync(invocation, CancellationToken.None).ConfigureAwait(false);
        }
        catch (IOException gone) when (gone.HResult == DescriptorStream.BrokenPipe)
        {
            // `dmp patches list | head`: whoever read has what they wanted. .NET ignores the signal that would have ended us.
            return ExitCodes.SignalBase + SignalOfBrokenPipe;
        }
        catch (Exception failure)
        {
            return Explain(failure, host);
        }
    }

    /// <summary>Says in one line what went wrong.</summary>
    /// <returns>The exit code that goes with it.</returns>
    public static int Explain(Exception failure, HostEnvironment host)
    {
        int code = failure switch
        {
            UnusableInputException => ExitCodes.Usage,
            HostUnsupportedException => ExitCodes.HostUnsupported,
            _ => ExitCodes.OwnFailure,
        };
        host.Error.WriteLine(code == ExitCodes.OwnFailure
            ? $"dmp: own failure: {failure.GetType().Name}: {OneLine(failure.Message)}{(host.Debug ? "" : " (DMP_DEBUG=1 shows where)")}"
            : $"dmp: {OneLine(failure.Message)}");
        if (host.Debug)
        {
            host.Error.WriteLine(failure);
        }

        return code;
    }

    private static int Usage(ParseResult parsed, RootCommand root, HostEnvironment host)
    {
        Command command = parsed.CommandResult.Command;
        string help = $"{NameOf(parsed.CommandResult)} --help";
        string problem = (command == root, parsed.UnmatchedTokens) switch
        {
            (true, []) => "no verb is given",
            (true, [var verb, ..]) => $"unknown verb '{verb}'",
            _ => OneLine(parsed.Errors[0].Message).TrimEnd('.'),
        };
        host.Error.WriteLine($"dmp: {problem}; see '{help}'");
        return ExitCodes.Usage;
    }

    /// <summary>A command with the verbs above it, as the user types it.</summary>
    private static string NameOf(CommandResult command) => command.Parent is CommandResult above
        ? $"{NameOf(above)} {command.Command.Name}"
        : "dmp";

    private static string OneLine(string text) => text.ReplaceLineEndings(" ");
}
