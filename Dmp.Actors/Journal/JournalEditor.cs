using Akka.Actor;
using Akka.Configuration;
using Dmp.Kvm;

namespace Dmp.Actors.Journal;

/// <summary>Changes a journal that no machine uses.</summary>
public static class JournalEditor
{
    /// <summary>Switches a site off, or on again. Durable when it returns.</summary>
    /// <param name="connection">Where the journal is.</param>
    /// <param name="kernelId">The kernel.</param>
    /// <param name="siteOffset">The site's offset from the kernel's base, in bytes.</param>
    /// <param name="disabled">Whether it is to be off.</param>
    /// <param name="settings">The settings file.</param>
    /// <exception cref="UnusableInputException">There is none, a machine uses it, or it cannot be written: one line that says
    /// what to do.</exception>
    public static async Task SwitchAsync(
        JournalConnection connection, string kernelId, long siteOffset, bool disabled, ControlSettings settings)
    {
        ArgumentNullException.ThrowIfNull(settings);
        JournalReader.RequireFile(connection);
        JournalEvent.Fact fact = disabled ? new JournalEvent.SiteDisabled(siteOffset) : new JournalEvent.SiteEnabled(siteOffset);

        // The guardian's warning would say the same as the exception does.
        Config silent = ConfigurationFactory.ParseString("akka { loglevel = OFF, stdout-loglevel = OFF }");
        using var system = ActorSystem.Create("dmp-patches", silent.WithFallback(settings.Configuration));
        IActorRef journal = system.ActorOf(JournalGuardian.Props(connection, kernelId, settings), "journal");

        // No limit here: the journal's own apply.
        object answer = await journal
            .Ask(new JournalProtocol.Record(RequestId: 1, [fact]), Timeout.InfiniteTimeSpan).ConfigureAwait(false);
        await journal.Ask(new JournalProtocol.Close(RequestId: 2), Timeout.InfiniteTimeSpan).ConfigureAwait(false);
        await system.Terminate().ConfigureAwait(false);
        if (answer is JournalProtocol.JournalFailed failed)
        {
            throw new UnusableInputException(failed.Reason);
        }
    }
}
