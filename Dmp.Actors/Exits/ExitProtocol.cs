using System.Collections.Immutable;
using Akka.Actor;
using Dmp.Kvm.Cpu;

namespace Dmp.Actors.Exits;

/// <summary>Messages of <see cref="ExitAggregator"/>.</summary>
public static class ExitProtocol
{
    /// <summary>How far the run is. Answered with <see cref="Totals"/>.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record GetTotals(long RequestId);

    /// <summary>The hottest sites so far. Answered with <see cref="TopSites"/>.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Count">How many at most.</param>
    public sealed record GetTopSites(long RequestId, int Count);

    /// <summary>A phase began. No answer.</summary>
    /// <param name="Name">Its name.</param>
    /// <param name="At">Counters when it began.</param>
    public sealed record CutPhase(string Name, ExitSample At);

    /// <summary>Look for hot sites from now on, and report them. No answer.</summary>
    /// <param name="To">Who wants to know.</param>
    public sealed record ReportHotSites(IActorRef To);

    /// <summary>The vCPUs have stopped: take the last sample. Answered with <see cref="Closed"/>.</summary>
    /// <param name="RequestId">Id of the request.</param>
    public sealed record Close(long RequestId);

    /// <summary>How far the run is.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Sample">The last sample.</param>
    /// <param name="ExitsPerSecond">Rate between the last two samples; null before there are two.</param>
    /// <param name="Phase">The phase that began last.</param>
    public sealed record Totals(long RequestId, ExitSample Sample, double? ExitsPerSecond, string Phase);

    /// <summary>The hottest sites.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Sites">Hottest first.</param>
    public sealed record TopSites(long RequestId, ImmutableArray<SiteCount> Sites);

    /// <summary>The final figures.</summary>
    /// <param name="RequestId">Id of the request.</param>
    /// <param name="Summary">What the run cost.</param>
    public sealed record Closed(long RequestId, ExitSummary Summary);
}
