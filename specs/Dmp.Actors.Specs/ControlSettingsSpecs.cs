using Dmp.Kvm;

namespace Dmp.Actors.Specs;

public class ControlSettingsSpecs
{
    [Fact(DisplayName = "The shipped settings file is complete")]
    public void Shipped_file_is_complete() => Assert.True(Settings.Shipped.SamplingInterval > TimeSpan.Zero);

    [Theory(DisplayName = "A bad settings file is refused with one line that names the setting")]
    [InlineData("sampling-interval = 1s", "sampling-interval = soon", "dmp.exits.sampling-interval")]
    [InlineData("sampling-interval = 1s", "sampling-interval = 0s", "dmp.exits.sampling-interval")]
    [InlineData("sampling-interval = 1s", "", "dmp.exits.sampling-interval")]
    [InlineData("restart-limit = 10", "restart-limit = many", "dmp.supervision.restart-limit")]
    [InlineData("open-timeout = 10s", "open-timeout = never", "dmp.journal.open-timeout")]
    [InlineData("detection-interval = 10ms", "detection-interval = 0ms", "dmp.patching.detection-interval must be more than zero")]
    [InlineData("longest-detection-interval = 250ms", "", "dmp.patching.longest-detection-interval is missing")]
    [InlineData("threshold = 32", "threshold = 0", "dmp.patching.threshold must not be less than 1")]
    [InlineData("threshold = 32", "threshold = hot", "dmp.patching.threshold = hot is not a whole number")]
    [InlineData("threshold = 32", "threshold = 99999999999", "dmp.patching.threshold = 99999999999 is not a whole number")]
    [InlineData("half-life = 1s", "half-life = infinite", "dmp.patching.half-life = infinite is not a time")]
    [InlineData("half-life = 1s", "half-life = -1s", "dmp.patching.half-life")]
    [InlineData("batch-limit = 64", "batch-limit = 0", "dmp.patching.batch-limit must not be less than 1")]
    [InlineData("patch-limit = 4096", "patch-limit = -1", "dmp.patching.patch-limit must not be less than 0")]
    [InlineData("patches-per-stop = 16", "patches-per-stop = 0", "dmp.patching.patches-per-stop must not be less than 1")]
    [InlineData("between-stops = 1ms", "between-stops = 0ms", "dmp.patching.between-stops must be more than zero")]
    [InlineData("notice-interval = 1s", "notice-interval = 0s", "dmp.patching.notice-interval must be more than zero")]
    [InlineData("replay-wait = 5s", "", "dmp.patching.replay-wait is missing")]
    [InlineData("quiesce-timeout = 250ms", "quiesce-timeout = {}", "dmp.patching.quiesce-timeout")]
    [InlineData("churn-interval = 0s", "churn-interval = -1s", "dmp.patching.churn-interval")]
    [InlineData("control-dispatcher {", "other-dispatcher {", "dmp.control-dispatcher")]
    [InlineData("threads = 2", "threads = 0", "dmp.control-dispatcher.threads must not be less than 1")]
    [InlineData("look-around = 0.02ms", "look-around = a while", "dmp.control-dispatcher.look-around")]
    [InlineData("loglevel = WARNING", "loglevel = ${nothing}", "HOCON")]
    [InlineData("akka {", "akka [", "'}' closes nothing")]
    [InlineData("loglevel = WARNING", "loglevel = [WARNING", "closes nothing")]
    [InlineData("loglevel = WARNING", "loglevel = \"WARNING", "line 6 is not valid HOCON: the quotes")]
    [InlineData("dmp {", "dmp { {", "line 20 is not valid HOCON: '{' is never closed")]
    [InlineData("dmp {", "dmp { # }\n {", "'{' is never closed")]
    public void Bad_files_are_refused(string text, string instead, string named)
    {
        Assert.Contains(text, Settings.Text, StringComparison.Ordinal);
        var error = Assert.Throws<UnusableInputException>(
            () => ControlSettings.Parse(Settings.Text.Replace(text, instead, StringComparison.Ordinal)));
        Assert.Contains(named, error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact(DisplayName = "Two settings may be nothing: no patch at all, and no churn")]
    public void Zero_where_it_means_something()
    {
        ControlSettings settings = ControlSettings.Parse(
            Settings.Text.Replace("patch-limit = 4096", "patch-limit = 0", StringComparison.Ordinal));
        Assert.Equal((0, TimeSpan.Zero), (settings.PatchLimit, settings.ChurnInterval));
    }

    [Fact(DisplayName = "A missing settings file is named")]
    public void Missing_file_is_named()
    {
        var error = Assert.Throws<UnusableInputException>(() => ControlSettings.Load("/nowhere/akka.hocon"));
        Assert.Contains("/nowhere/akka.hocon", error.Message, StringComparison.Ordinal);
    }
}
