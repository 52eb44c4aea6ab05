using System.Globalization;
using Akka.Configuration;
using Dmp.Actors.Journal;
using Dmp.Kvm;

namespace Dmp.Actors;

/// <summary>The settings of akka.hocon that our actors use, read once and checked.</summary>
public sealed record ControlSettings
{
    /// <summary>Path in the configuration of the dispatcher that all control actors share.</summary>
    public const string Dispatcher = "dmp.control-dispatcher";

    /// <summary>The whole configuration, for the actor system.</summary>
    public required Config Configuration { get; init; }

    /// <summary>How often exit tables are sampled.</summary>
    public required TimeSpan SamplingInterval { get; init; }

    /// <summary>Sites listed in a report.</summary>
    public required int ReportSites { get; init; }

    /// <summary>How long a vCPU may take to pause.</summary>
    public required TimeSpan PauseTimeout { get; init; }

    /// <summary>How long a vCPU's thread may take to end.</summary>
    public required TimeSpan StopTimeout { get; init; }

    /// <summary>How long a panicked guest may go on.</summary>
    public required TimeSpan PanicGrace { get; init; }

    /// <summary>How long the last output may take to reach the sink.</summary>
    public required TimeSpan DrainTimeout { get; init; }

    /// <summary>How soon input is offered again to a full receive queue.</summary>
    public required TimeSpan InputRetry { get; init; }

    /// <summary>Restarts of a child within <see cref="RestartWindow"/>.</summary>
    public required int RestartLimit { get; init; }

    /// <summary>Window in which restarts count together.</summary>
    public required TimeSpan RestartWindow { get; init; }

    /// <summary>How often hot sites are looked for.</summary>
    public required TimeSpan DetectionInterval { get; init; }

    /// <summary>Limit of that interval, which doubles while there are too few exits for a hot site.</summary>
    public required TimeSpan LongestDetectionInterval { get; init; }

    /// <summary>Exits, decayed, that make a site hot.</summary>
    public required int HotThreshold { get; init; }

    /// <summary>Time in which a site's count halves.</summary>
    public required TimeSpan HalfLife { get; init; }

    /// <summary>Hot sites reported at once.</summary>
    public required int BatchLimit { get; init; }

    /// <summary>Patches that a machine may have.</summary>
    public required int PatchLimit { get; init; }

    /// <summary>Most patches that are written, or taken back, in one stop of the world.</summary>
    public required int PatchesPerStop { get; init; }

    /// <summary>How long the guest runs between two stops of one transaction.</summary>
    public required TimeSpan BetweenStops { get; init; }

    /// <summary>How often the patch engine is asked what happened to its patches.</summary>
    public required TimeSpan NoticeInterval { get; init; }

    /// <summary>How often all patches are taken back, or applied again; zero for never.</summary>
    public required TimeSpan ChurnInterval { get; init; }

    /// <summary>How long the guest waits for the patches of earlier runs before it starts without them.</summary>
    public required TimeSpan ReplayWait { get; init; }

    /// <summary>How long the vCPUs may take to stop for a patch transaction.</summary>
    public required TimeSpan QuiesceTimeout { get; init; }

    /// <summary>How long no hot site is looked at after a transaction that was given up; doubles until one is committed.</summary>
    public required TimeSpan FirstRest { get; init; }

    /// <summary>Limit of that.</summary>
    public required TimeSpan LongestRest { get; init; }

    /// <summary>Settings of the patch journal.</summary>
    public required JournalSettings Journal { get; init; }

    /// <summary>Reads a settings file.</summary>
    /// <param name="path">Path of akka.hocon.</param>
    /// <exception cref="UnusableInputException">The file is missing or malformed, or a setting is.</exception>
    public static ControlSettings Load(string path)
    {
        try
        {
            return Parse(File.ReadAllText(path));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new UnusableInputException($"cannot read the settings file {path}: {e.Message}");
        }
        catch (UnusableInputException e)
        {
            throw new UnusableInputException($"{path}: {e.Message}");
        }
    }

    /// <summary>Reads settings from text.</summary>
    /// <param name="text">Text in HOCON.</param>
    /// <exception cref="UnusableInputException">The text or a setting in it is malformed.</exception>
    public static ControlSettings Parse(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        HoconShape.Check(text);
        Config config;
        try
        {
            config = ConfigurationFactory.ParseString(text);
        }
        catch (Exception e)
        {
            // The parser throws plain exceptions of several types; all of them mean the same to the user.
            throw new UnusableInputException($"not valid HOCON ({OneLine(e.Message)})");
        }

        if (!config.HasPath(Dispatcher))
        {
            throw new UnusableInputException($"{Dispatcher} is missing");
        }

        // The dispatcher reads them itself, when the first actor starts: too late to say that they are wrong.
        _ = Count(config, $"{Dispatcher}.threads", least: 1);
        _ = Time(config, $"{Dispatcher}.look-around", orZero: true);

        return new ControlSettings
        {
            Configuration = config,
            SamplingInterval = Time(config, "dmp.exits.sampling-interval"),
            ReportSites = Count(config, "dmp.exits.report-sites"),
            PauseTimeout = Time(config, "dmp.vcpu.pause-timeout"),
            StopTimeout = Time(config, "dmp.vcpu.stop-timeout"),
            PanicGrace = Time(config, "dmp.console.panic-grace"),
            DrainTimeout = Time(config, "dmp.console.drain-timeout"),
            InputRetry = Time(config, "dmp.console.input-retry"),
            RestartLimit = Count(config, "dmp.supervision.restart-limit"),
            RestartWindow = Time(config, "dmp.supervision.restart-window"),
            DetectionInterval = Time(config, "dmp.patching.detection-interval"),
            LongestDetectionInterval = Time(config, "dmp.patching.longest-detection-interval"),
            HotThreshold = Count(config, "dmp.patching.threshold", least: 1),
            HalfLife = Time(config, "dmp.patching.half-life"),
            BatchLimit = Count(config, "dmp.patching.batch-limit", least: 1),
            PatchLimit = Count(config, "dmp.patching.patch-limit"),
            PatchesPerStop = Count(config, "dmp.patching.patches-per-stop", least: 1),
            BetweenStops = Time(config, "dmp.patching.between-stops"),
            NoticeInterval = Time(config, "dmp.patching.notice-interval"),
            ChurnInterval = Time(config, "dmp.patching.churn-interval", orZero: true),
            ReplayWait = Time(config, "dmp.patching.replay-wait"),
            QuiesceTimeout = Time(config, "dmp.patching.quiesce-timeout"),
            FirstRest = Time(config, "dmp.patching.first-rest"),
            LongestRest = Time(config, "dmp.patching.longest-rest"),
            Journal = new JournalSettings
            {
                Connection = Read(config, "dmp.journal.connection", () => config.GetString("dmp.journal.connection"), "a text"),
                OpenTimeout = Time(config, "dmp.journal.open-timeout"),
                AnswerTimeout = Time(config, "dmp.journal.answer-timeout"),
                FirstRetry = Time(config, "dmp.journal.first-retry"),
                LongestRetry = Time(config, "dmp.journal.longest-retry"),
                SnapshotEvery = Count(config, "dmp.journal.snapshot-every"),
            },
        };
    }

    private static TimeSpan Time(Config config, string path, bool orZero = false)
    {
        TimeSpan value = Read(config, path, () => config.GetTimeSpan(path, null, allowInfinite: false), "a time such as 250ms");
        return value > TimeSpan.Zero || (orZero && value == TimeSpan.Zero) ? value : throw new UnusableInputException($"{path} must be more than zero");
    }

    private static int Count(Config config, string path, int least = 0)
    {
        int value = Read(config, path, () => config.GetInt(path), "a whole number");
        return value >= least ? value : throw new UnusableInputException($"{path} must not be less than {least}");
    }

    private static T Read<T>(Config config, string path, Func<T> read, string expected)
    {
        if (!config.HasPath(path))
        {
            throw new UnusableInputException($"{path} is missing");
        }

        try
        {
            return read();
        }
        catch (Exception)
        {
            throw new UnusableInputException(string.Create(
                CultureInfo.InvariantCulture,
                $"{path} = {config.GetString(path)} is not {expected}"));
        }
    }

    private static string OneLine(string text) => text.ReplaceLineEndings(" ");
}
