namespace Dmp.Actors.Journal;

/// <summary>Whether a journal can be used, before a guest runs.</summary>
public static class JournalCheck
{
    /// <summary>
    /// Opens the journal, creates it when it is not there, and closes it again. Starts no actors: takes milliseconds, or a few
    /// seconds when a server does not answer. Any thread.
    /// </summary>
    /// <param name="connection">The journal.</param>
    /// <param name="message">Why not, in one line for the user; empty when it can be used.</param>
    /// <returns>Whether it can be used, at this moment.</returns>
    public static bool TryOpen(JournalConnection connection, out string message)
    {
        ArgumentNullException.ThrowIfNull(connection);
        try
        {
            JournalStore.Open(connection, kernelId: null).Dispose();
            message = string.Empty;
            return true;
        }
        catch (Exception failure)
        {
            // Files, SQLite, sockets and PostgreSQL have no exception in common; all of them mean the same here.
            message = JournalFailure.Of("open", connection, failure).Line;
            return false;
        }
    }
}
