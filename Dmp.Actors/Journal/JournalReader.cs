using System.Collections.Immutable;
using Akka;
using Akka.Persistence.Query;
using Akka.Persistence.Sql.Query;
using Akka.Streams;
using Akka.Streams.Dsl;
using Dmp.Kvm;

namespace Dmp.Actors.Journal;

/// <summary>Reads a journal that no machine uses.</summary>
public static class JournalReader
{
    /// <summary>Reads everything. Changes nothing: what an unfinished transaction left open is shown as the next run will
    /// resolve it.</summary>
    /// <param name="connection">Where the journal is.</param>
    /// <param name="settings">The settings file.</param>
    /// <returns>By kernel id, in alphabetical order.</returns>
    /// <exception cref="UnusableInputException">There is none, a machine uses it (an SQLite file; a server can be read at any
    /// time), or it cannot be read: one line that says what to do.</exception>
    public static async Task<ImmutableSortedDictionary<string, JournalState>> ReadAsync(
        JournalConnection connection, ControlSettings settings)
    {
        ImmutableSortedDictionary<string, KernelHistory> kernels =
            await ReadHistoriesAsync(connection, settings).ConfigureAwait(false);
        return kernels.ToImmutableSortedDictionary(kernel => kernel.Key, kernel => kernel.Value.State, StringComparer.Ordinal);
    }

    /// <summary>As <see cref="ReadAsync(JournalConnection, ControlSettings)"/>, with all that led there.</summary>
    /// <param name="connection">Where the journal is.</param>
    /// <param name="settings">The settings file.</param>
    /// <returns>By kernel id, in alphabetical order.</returns>
    /// <exception cref="UnusableInputException">So.</exception>
    public static async Task<ImmutableSortedDictionary<string, KernelHistory>> ReadHistoriesAsync(
        JournalConnection connection, ControlSettings settings)
    {
        ArgumentNullException.ThrowIfNull(settings);
        RequireFile(connection);
        try
        {
            JournalSession session = await JournalSession.OpenAsync(connection, kernelId: null, settings).ConfigureAwait(false);
            await using (session.ConfigureAwait(false))
            {
                return await ReadAsync(session).WaitAsync(settings.Journal.OpenTimeout).ConfigureAwait(false);
            }
        }
        catch (Exception failure)
        {
            // Whatever the database throws: the user can do something about each, and the line says what.
            throw new UnusableInputException(JournalFailure.Of("read", connection, failure).Line, failure);
        }
    }

    /// <summary>Refuses a journal that would have to be created.</summary>
    /// <param name="connection">Where it is.</param>
    internal static void RequireFile(JournalConnection connection)
    {
        if (connection is JournalConnection.SqliteFile file && !File.Exists(file.Path))
        {
            throw new UnusableInputException($"there is no patch journal ({file.Path}); a run that patches its guest makes one");
        }
    }

    private static async Task<ImmutableSortedDictionary<string, KernelHistory>> ReadAsync(JournalSession session)
    {
        using ActorMaterializer materializer = session.System.Materializer();
        SqlReadJournal journal = PersistenceQuery.Get(session.System).ReadJournalFor<SqlReadJournal>(SqlReadJournal.Identifier);
        ImmutableList<string> streams = await journal.CurrentPersistenceIds()
            .RunAggregate(ImmutableList<string>.Empty, (known, stream) => known.Add(stream), materializer).ConfigureAwait(false);
        var kernels = ImmutableSortedDictionary.CreateBuilder<string, KernelHistory>(StringComparer.Ordinal);
        foreach (string stream in streams)
        {
            if (PatchJournal.KernelIdOf(stream) is { } kernel)
            {
                kernels[kernel] = await HistoryAsync(journal, stream, materializer).ConfigureAwait(false);
            }
        }

        return kernels.ToImmutable();
    }

    private static async Task<KernelHistory> HistoryAsync(SqlReadJournal journal, string stream, ActorMaterializer materializer)
    {
        Source<EventEnvelope, NotUsed> stored = journal.CurrentEventsByPersistenceId(stream, 0, long.MaxValue);
        ImmutableArray<RecordedEvent>.Builder events = await stored
            .RunAggregate(
                ImmutableArray.CreateBuilder<RecordedEvent>(),
                (before, envelope) =>
                {
                    before.Add(envelope.Event is JournalEvent happened
                        ? new RecordedEvent(new DateTime(envelope.Timestamp, DateTimeKind.Utc), happened)
                        : throw new JournalFormatException($"it holds a {envelope.Event.GetType().Name}"));
                    return before;
                },
                materializer)
            .ConfigureAwait(false);
        JournalState state = events.Aggregate(JournalState.Empty, (before, recorded) => before.Apply(recorded.Event));
        return new KernelHistory(
            events.ToImmutable(),
            state.Unresolved(PatchJournal.EndedBefore, ImmutableHashSet<long>.Empty)
                .Aggregate(state, (before, aborted) => before.Apply(aborted)));
    }
}
