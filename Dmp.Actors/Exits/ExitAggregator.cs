using System.Collections.Immutable;
using Akka.Actor;
using Dmp.Actors.Planning;
using Dmp.Kvm.Cpu;

namespace Dmp.Actors.Exits;

/// <summary>
/// Samples the exit tables on a timer, keeps the phases, and answers what the run costs. What must survive its restart, the phase
/// cuts, lives in the ledger it is lent.
/// </summary>
public sealed class ExitAggregator : ReceiveActor, IWithTimers
{
    private readonly ExitSampler sampler;
    private readonly PhaseLedger ledger;
    private readonly ControlSettings settings;
    private ExitSample latest = ExitSample.Zero;
    private readonly HotSites hotSites;
    private readonly SiteSums sites;
    private IActorRef planner = ActorRefs.Nobody;
    private double? exitsPerSecond;
    private TimeSpan untilNextDetection;

    /// <summary>Creates the actor; use <see cref="Props"/>.</summary>
    /// <param name="sampler">Reads the exit tables.</param>
    /// <param name="ledger">The phases.</param>
    /// <param name="settings">Sampling interval, number of sites.</param>
    public ExitAggregator(ExitSampler sampler, PhaseLedger ledger, ControlSettings settings)
    {
        this.sampler = sampler;
        this.ledger = ledger;
        this.settings = settings;
        sites = sampler.Sites();
        hotSites = new HotSites(settings.HotThreshold, settings.HalfLife);
        Receive<Tick>(_ => TakeSample());
        Receive<DetectionTick>(_ => Detect());
        Receive<ExitProtocol.ReportHotSites>(report =>
        {
            planner = report.To;
            DetectAfter(settings.DetectionInterval);
        });
        Receive<ExitProtocol.CutPhase>(cut => ledger.Cut(cut.Name, cut.At));
        Receive<ExitProtocol.GetTotals>(get =>
            Sender.Tell(new ExitProtocol.Totals(get.RequestId, latest, exitsPerSecond, ledger.Current)));
        Receive<ExitProtocol.GetTopSites>(get =>
            Sender.Tell(new ExitProtocol.TopSites(get.RequestId, sampler.TopSites(get.Count))));
        Receive<ExitProtocol.Close>(close =>
            Sender.Tell(new ExitProtocol.Closed(close.RequestId, Summarize(sampler, ledger, settings.ReportSites))));
    }

    /// <inheritdoc />
    public ITimerScheduler Timers { get; set; } = null!;

    /// <summary>How to create the aggregator.</summary>
    /// <param name="sampler">Reads the exit tables.</param>
    /// <param name="ledger">The phases; outlives the actor.</param>
    /// <param name="settings">Sampling interval, number of sites.</param>
    public static Props Props(ExitSampler sampler, PhaseLedger ledger, ControlSettings settings) =>
        Akka.Actor.Props.Create(() => new ExitAggregator(sampler, ledger, settings)).WithDispatcher(ControlSettings.Dispatcher);

    /// <summary>The final figures, straight from the counters.</summary>
    /// <param name="sampler">Reads the exit tables.</param>
    /// <param name="ledger">The phases.</param>
    /// <param name="sites">How many sites at most.</param>
    internal static ExitSummary Summarize(ExitSampler sampler, PhaseLedger ledger, int sites)
    {
        ExitSample end = sampler.Sample();
        return new ExitSummary(end, ledger.Costs(end), sampler.TopSites(sites), sampler.PerVcpu());
    }

    /// <inheritdoc />
    protected override void PreStart() =>
        Timers.StartPeriodicTimer(nameof(Tick), Tick.Instance, settings.SamplingInterval);

    /// <inheritdoc />
    protected override void PreRestart(Exception reason, object message)
    {
        // The message that fails is lost with the actor; a phase cut or the final question must not be.
        if (message is ExitProtocol.CutPhase or ExitProtocol.Close)
        {
            Self.Tell(message, Sender);
        }

        if (!planner.IsNobody())
        {
            Self.Tell(new ExitProtocol.ReportHotSites(planner));
        }

        base.PreRestart(reason, message);
    }

    private void Detect()
    {
        // Not for fewer exits than make one site hot: a guest that idles has thousands of sites, and none of them gets hotter. Its host is
        // not woken as often either.
        if (sites.Added() < settings.HotThreshold)
        {
            TimeSpan doubled = 2 * untilNextDetection;
            DetectAfter(doubled < settings.LongestDetectionInterval ? doubled : settings.LongestDetectionInterval);
            return;
        }

        DetectAfter(settings.DetectionInterval);
        TimeSpan at = sampler.Now;
        ImmutableArray<HotSite> hot = hotSites.Sample(at, sites.Take(), settings.BatchLimit);
        if (!hot.IsEmpty)
        {
            planner.Tell(new PlanningProtocol.HotSitesDetected(at, hot));
        }
    }

    private void DetectAfter(TimeSpan time)
    {
        untilNextDetection = time;
        Timers.StartSingleTimer(nameof(DetectionTick), DetectionTick.Instance, time);
    }

    private void TakeSample()
    {
        ExitSample sample = sampler.Sample();
        double seconds = (sample.At - latest.At).TotalSeconds;
        if (seconds > 0)
        {
            exitsPerSecond = (sample.Total - latest.Total) / seconds;
        }

        latest = sample;
    }

    private sealed class DetectionTick
    {
        public static readonly DetectionTick Instance = new();
    }

    private sealed class Tick
    {
        public static readonly Tick Instance = new();
    }
}
