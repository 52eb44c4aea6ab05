using System.Collections.Immutable;
using System.CommandLine;
using System.Text.Json;
using Dmp.Actors;
using Dmp.Actors.Journal;
using Dmp.Host.Patches;
using Dmp.Kvm;

namespace Dmp.Host.Verbs;

/// <summary><c>dmp patches</c>: what a journal holds, and the user's switches in it. Needs no guest and no KVM.</summary>
internal static class PatchesVerb
{
    /// <summary>Creates the verb.</summary>
    public static Command Create(HostEnvironment host) => new("patches", "Show the patches of a journal, and switch them off and on")
    {
        List(host), Show(host), Switch(host, disable: true), Switch(host, disable: false),
    };

    private static Command List(HostEnvironment host)
    {
        Option<string> journal = JournalOption();
        Option<string?> kernel = KernelOption();
        Option<bool> json = JsonOption();
        var command = new Command("list", "List the sites of a journal: what was patched, refused or switched off") { journal, kernel, json };
        command.SetAction(async (parsed, _) =>
        {
            Opened opened = await OpenAsync(host, parsed.GetRequiredValue(journal), parsed.GetValue(kernel)).ConfigureAwait(false);
            if (parsed.GetValue(json))
            {
                Print(host, JsonSerializer.Serialize(
                    PatchDocuments.List(opened.Connection.Description, opened.Sites), PatchesJson.Plain.PatchesDocument));
            }
            else if (opened.Sites.IsEmpty)
            {
                host.Text.WriteLine($"the patch journal ({opened.Connection.Description}) holds no patches");
            }
            else
            {
                PatchListText.Write(opened.Sites, host.Text);
            }

            return ExitCodes.Success;
        });
        return command;
    }

    private static Command Show(HostEnvironment host)
    {
        Argument<string> site = SiteArgument();
        Option<string> journal = JournalOption();
        Option<string?> kernel = KernelOption();
        Option<bool> json = JsonOption();
        var command = new Command("show", "Show a site: its code before and after, its implant, its history") { site, journal, kernel, json };
        command.SetAction(async (parsed, _) =>
        {
            Opened opened = await OpenAsync(host, parsed.GetRequiredValue(journal), parsed.GetValue(kernel)).ConfigureAwait(false);
            PatchDocument shown = PatchDocuments.Show(SiteSelector.Find(opened.Sites, parsed.GetRequiredValue(site)));
            if (parsed.GetValue(json))
            {
                Print(host, JsonSerializer.Serialize(shown, PatchesJson.Plain.PatchDocument));
            }
            else
            {
                PatchShowText.Write(shown, host.Text);
            }

            return ExitCodes.Success;
        });
        return command;
    }

    private static Command Switch(HostEnvironment host, bool disable)
    {
        Argument<string> site = SiteArgument();
        Option<string> journal = JournalOption();
        Option<string?> kernel = KernelOption();
        var command = new Command(
            disable ? "disable" : "enable",
            disable ? "Switch a site off: the next runs neither replay nor make a patch there" : "Switch a site on again")
        {
            site, journal, kernel,
        };
        command.SetAction(async (parsed, _) =>
        {
            Opened opened = await OpenAsync(host, parsed.GetRequiredValue(journal), parsed.GetValue(kernel)).ConfigureAwait(false);
            PatchSite found = SiteSelector.Find(opened.Sites, parsed.GetRequiredValue(site));
            string name = $"{found.Name}{(found.Symbol is null ? "" : $" {found.Symbol}")}";
            bool isDisabled = found.Main.State == SiteState.Disabled;
            if (isDisabled == disable)
            {
                host.Text.WriteLine($"{name} is {(disable ? "disabled already" : "not disabled")}; nothing is changed");
                return ExitCodes.Success;
            }

            // Any byte of a window that is switched off keeps all of it from being patched, so all of them are switched on again.
            long[] offsets = disable
                ? [found.Offset]
                : [.. found.Kernel.State.Disabled.Where(offset => offset == found.Offset
                    || found.Windows.Any(window => window.Entry?.Patch.Covers(offset) == true))];
            foreach (long offset in offsets)
            {
                await JournalEditor.SwitchAsync(opened.Connection, found.KernelId, offset, disable, opened.Settings).ConfigureAwait(false);
            }

            host.Text.WriteLine(disable
                ? $"{name} is disabled: the next runs with this journal do not patch it"
                : $"{name} is enabled: the next runs with this journal may patch it again");
            return ExitCodes.Success;
        });
        return command;
    }

    private static Argument<string> SiteArgument() => new("SITE")
    {
        Description = "A site as the list shows it: address, offset with its sign, or symbol+offset; or the beginning of one",
    };

    private static Option<string> JournalOption() => new("--journal")
    {
        Description = "Where patches are kept: an SQLite file, or postgres://...",
        HelpName = "FILE-or-connection",
        Required = true,
    };

    private static Option<string?> KernelOption() => new("--kernel-id")
    {
        Description = "Only this kernel; the beginning of its id is enough",
        HelpName = "ID",
    };

    private static Option<bool> JsonOption() => new("--json") { Description = "Print JSON" };

    private static async Task<Opened> OpenAsync(HostEnvironment host, string journal, string? kernel)
    {
        var settings = ControlSettings.Load(host.SettingsPath);
        var connection = JournalConnection.Parse(journal);
        ImmutableSortedDictionary<string, KernelHistory> kernels =
            await JournalReader.ReadHistoriesAsync(connection, settings).ConfigureAwait(false);
        if (kernel is not null)
        {
            kernels = kernels.Where(known => known.Key.StartsWith(kernel, StringComparison.OrdinalIgnoreCase))
                .ToImmutableSortedDictionary(StringComparer.Ordinal);
            if (kernels.IsEmpty)
            {
                throw new UnusableInputException($"the journal has no kernel '{kernel}'; 'dmp patches list' without it shows those it has");
            }
        }

        return new Opened(connection, settings, [.. kernels.SelectMany(known => PatchSite.Of(known.Key, known.Value))]);
    }

    private static void Print(HostEnvironment host, string json) => host.Text.WriteLine(json);

    private sealed record Opened(JournalConnection Connection, ControlSettings Settings, ImmutableArray<PatchSite> Sites);
}
