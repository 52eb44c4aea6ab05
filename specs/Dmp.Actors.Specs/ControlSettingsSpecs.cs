using Dmp.Kvm;

namespace Dmp.Actors.Specs;

public class ControlSettingsSpecs
{
    [Fact(DisplayName = "The shipped settings file is complete")]
    public void Shipped_file_is_complete() => Assert.True(Settings.Shipped.SamplingInterval > TimeSpan.Zero);

    [Theory(DisplayName = "A bad settings file is refused with one line that names the setting")]
    [InlineData("sampling-interval = 250ms", "sampling-interval = soon", "dmp.exits.sampling-interval")]
    [InlineData("sampling-interval = 250ms", "sampling-interval = 0s", "dmp.exits.sampling-interval")]
    [InlineData("sampling-interval = 250ms", "", "dmp.exits.sampling-interval")]
    [InlineData("restart-limit = 10", "restart-limit = many", "dmp.supervision.restart-limit")]
    [InlineData("open-timeout = 10s", "open-timeout = never", "dmp.journal.open-timeout")]
    [InlineData("control-dispatcher {", "other-dispatcher {", "dmp.control-dispatcher")]
    [InlineData("loglevel = WARNING", "loglevel = ${nothing}", "HOCON")]
    [InlineData("akka {", "akka [", "'}' closes nothing")]
    [InlineData("loglevel = WARNING", "loglevel = [WARNING", "closes nothing")]
    [InlineData("loglevel = WARNING", "loglevel = \"WARNING", "line 4 is not valid HOCON: the quotes")]
    [InlineData("dmp {", "dmp { {", "line 18 is not valid HOCON: '{' is never closed")]
    [InlineData("dmp {", "dmp { # }\n {", "'{' is never closed")]
    public void Bad_files_are_refused(string text, string instead, string named)
    {
        Assert.Contains(text, Settings.Text, StringComparison.Ordinal);
        var error = Assert.Throws<UnusableInputException>(
            () => ControlSettings.Parse(Settings.Text.Replace(text, instead, StringComparison.Ordinal)));
        Assert.Contains(named, error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact(DisplayName = "A missing settings file is named")]
    public void Missing_file_is_named()
    {
        var error = Assert.Throws<UnusableInputException>(() => ControlSettings.Load("/nowhere/akka.hocon"));
        Assert.Contains("/nowhere/akka.hocon", error.Message, StringComparison.Ordinal);
    }
}
