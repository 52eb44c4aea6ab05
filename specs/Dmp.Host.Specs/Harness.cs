using System.Text;
using Dmp.Kvm;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Probe;
using Spectre.Console;

namespace Dmp.Host.Specs;

/// <summary>What a command line came to.</summary>
internal sealed record Ran(int ExitCode, string Output, string Text, string Error);

/// <summary>Runs command lines in-process, in a directory of their own.</summary>
internal sealed class Harness : IDisposable
{
    public Harness()
    {
        Directory = System.IO.Directory.CreateTempSubdirectory("dmp-specs-").FullName;
        Kernel = PathOf("vmlinuz");
        File.WriteAllText(Kernel, "a kernel, as far as the command line can tell");
    }

    public string Directory { get; }

    public string Kernel { get; }

    public string SettingsPath { get; } = Path.Combine(AppContext.BaseDirectory, "akka.hocon");

    public string Input { get; init; } = "";

    public Func<MachineConfiguration, IMachine> CreateMachine { get; init; } = _ => throw new InvalidOperationException("no machine");

    public Action RequireKvm { get; init; } = () => { };

    public string PathOf(string name) => Path.Combine(Directory, name);

    public async Task<Ran> RunAsync(params string[] arguments)
    {
        using var input = new MemoryStream(Encoding.UTF8.GetBytes(Input));
        using var output = new MemoryStream();
        using var text = new StringWriter();
        using var error = new StringWriter();
        var host = new HostEnvironment
        {
            Input = input,
            Output = output,
            Text = TextWriter.Synchronized(text),
            Error = TextWriter.Synchronized(error),
            TextConsole = () => AnsiConsole.Create(new AnsiConsoleSettings { Ansi = AnsiSupport.No, Out = new AnsiConsoleOutput(text) }),
            ErrorConsole = () => AnsiConsole.Create(new AnsiConsoleSettings { Ansi = AnsiSupport.No, Out = new AnsiConsoleOutput(error) }),
            SettingsPath = SettingsPath,
            GuestBuildPath = PathOf("build"),
            CreateMachine = CreateMachine,
            RequireKvm = RequireKvm,
            Probe = () => new ProbeReport([new ProbeFinding("cpl0", "emulated", "stubs stay short")], ["shadow writes in the VM"]),
        };
        int code = await CommandLine.InvokeAsync(arguments, host);
        return new Ran(code, Encoding.UTF8.GetString(output.ToArray()), text.ToString(), error.ToString());
    }

    public void Dispose() => System.IO.Directory.Delete(Directory, recursive: true);
}
