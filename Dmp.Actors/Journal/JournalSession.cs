using Akka.Actor;
using Akka.Event;
using Akka.Persistence.Sql.Journal;
using Akka.Persistence.Sql.Snapshot;
using Microsoft.Data.Sqlite;
using Npgsql;

namespace Dmp.Actors.Journal;

/// <summary>
/// A journal that is open: its lock, and an actor system of its own that keeps it. The plugins of Akka.Persistence live as long
/// as their actor system, take their connection from its configuration, restart without end when they cannot initialize, and
/// log every failure with its stack trace. With a system to each session a journal that failed is given up completely and
/// opened anew.
/// </summary>
internal sealed class JournalSession : IAsyncDisposable
{
    // Only ever needed when a database call hangs; the system's threads are the pool's and end with the process.
    private static readonly TimeSpan TerminationLimit = TimeSpan.FromSeconds(5);

    private readonly JournalStore store;
    private readonly JournalConnection connection;

    private JournalSession(JournalStore store, JournalConnection connection, ActorSystem system)
    {
        this.store = store;
        this.connection = connection;
        System = system;
    }

    /// <summary>The journal's actor system.</summary>
    public ActorSystem System { get; }

    /// <summary>Opens a journal.</summary>
    /// <param name="connection">Where it is.</param>
    /// <param name="kernelId">The kernel whose patches are to be written; null to write none.</param>
    /// <param name="settings">The settings file.</param>
    /// <exception cref="Exception">As <see cref="JournalStore.Open(JournalConnection, string?)"/>.</exception>
    public static Task<JournalSession> OpenAsync(JournalConnection connection, string? kernelId, ControlSettings settings) =>
        Task.Run(() => Open(connection, kernelId, settings));

    private static JournalSession Open(JournalConnection connection, string? kernelId, ControlSettings settings)
    {
        JournalStore store = JournalStore.Open(connection, kernelId);
        try
        {
            var system = ActorSystem.Create("dmp-journal", JournalConfiguration.For(connection, settings));
            return new JournalSession(store, connection, system);
        }
        catch
        {
            store.Dispose();
            throw;
        }
    }

    /// <summary>Starts the journal's actor.</summary>
    /// <param name="props">How.</param>
    /// <param name="owner">Is told <see cref="PluginFailed"/> when a plugin logs an error: one that cannot initialize says so
    /// nowhere else, and tries again without end.</param>
    /// <param name="number">The owner's number of this session.</param>
    public IActorRef Start(Props props, IActorRef owner, long number)
    {
        IActorRef listener = System.ActorOf(Props.Create(() => new ErrorListener(owner, number)));
        System.EventStream.Subscribe(listener, typeof(Error));
        return System.ActorOf(props);
    }

    /// <summary>Gives the database back, then the lock. What is being written is written or not; nothing of it was
    /// acknowledged.</summary>
    public async ValueTask DisposeAsync()
    {
        try
        {
            await System.Terminate().WaitAsync(TerminationLimit).ConfigureAwait(false);
        }
        catch (TimeoutException)
        {
            // The lock goes all the same: a journal that hangs must not keep the next attempt from opening it.
        }

        ClearPool();
        store.Dispose();
    }

    private void ClearPool()
    {
        switch (connection)
        {
            case JournalConnection.SqliteFile file:
                using (var pooled = new SqliteConnection(JournalConfiguration.ConnectionString(file, pooled: true)))
                {
                    SqliteConnection.ClearPool(pooled);
                }

                break;
            case JournalConnection.PostgreSql server:
                using (var pooled = new NpgsqlConnection(server.ConnectionString))
                {
                    NpgsqlConnection.ClearPool(pooled);
                }

                break;
        }
    }

    /// <summary>To the owner: a plugin of Akka.Persistence logged an error.</summary>
    /// <param name="Session">The owner's number of this session.</param>
    /// <param name="Cause">What it logged.</param>
    internal sealed record PluginFailed(long Session, Exception Cause);

    private sealed class ErrorListener : ReceiveActor
    {
        public ErrorListener(IActorRef owner, long number) => Receive<Error>(
            error => error.Cause is not null
                && (error.LogClass == typeof(SqlWriteJournal) || error.LogClass == typeof(SqlSnapshotStore)),
            error => owner.Tell(new PluginFailed(number, error.Cause)));
    }
}
