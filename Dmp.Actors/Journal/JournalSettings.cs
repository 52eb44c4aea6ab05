namespace Dmp.Actors.Journal;

/// <summary>The dmp.journal part of akka.hocon.</summary>
public sealed record JournalSettings
{
    /// <summary>Where the journal is kept when the command line does not say; empty for a file in the user's data
    /// folder.</summary>
    public required string Connection { get; init; }

    /// <summary>How long the journal may take to open and to recover.</summary>
    public required TimeSpan OpenTimeout { get; init; }

    /// <summary>How long a request may take when the journal is open.</summary>
    public required TimeSpan AnswerTimeout { get; init; }

    /// <summary>How soon a journal that failed is opened again; doubles from one attempt to the next.</summary>
    public required TimeSpan FirstRetry { get; init; }

    /// <summary>The longest time between two attempts.</summary>
    public required TimeSpan LongestRetry { get; init; }

    /// <summary>Events between two snapshots.</summary>
    public required int SnapshotEvery { get; init; }
}
