using System.CommandLine;
using Dmp.Host.Demo;

namespace Dmp.Host.Verbs;

/// <summary><c>dmp guest</c>: builds or refreshes the demo guest and prints where it is.</summary>
internal static class GuestVerb
{
    /// <summary>Creates the verb.</summary>
    public static Command Create(HostEnvironment host)
    {
        var command = new Command("guest", "Build or refresh the demo guest, and print the paths of its kernel and initrd");
        command.SetAction(async (_, _) =>
        {
            GuestImages images = await GuestBuild.RunAsync(host).ConfigureAwait(false);
            host.Text.WriteLine($"{GuestBuild.KernelKey}{images.Kernel}");
            host.Text.WriteLine($"{GuestBuild.InitrdKey}{images.Initrd}");
            return ExitCodes.Success;
        });
        return command;
    }
}
