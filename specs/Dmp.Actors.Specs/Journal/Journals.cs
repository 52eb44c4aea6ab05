using System.Collections.Immutable;
using Akka.Actor;
using Akka.Configuration;
using Akka.Event;
using Dmp.Actors.Journal;
using Dmp.Kvm.Patching;
using static Dmp.Actors.Journal.JournalProtocol;

namespace Dmp.Actors.Specs.Journal;

/// <summary>What the specs of the journal have in common.</summary>
internal static class Journals
{
    public const string Kernel = "0123456789abcdef";

    public static TemplateUse Pushf { get; } = new("pushf", 1);

    public static JournaledPatch Patch(long offset) => new(offset, [0x9c, 0x58, 0x0f, 0x1f, 0x00], offset, [Pushf]);

    // No spec waits for these: on a machine that is busy with other things they must not run out either.
    private const string Patient = """

        dmp.journal { open-timeout = 60s, answer-timeout = 60s }
        akka.persistence.journal.sql { recovery-event-timeout = 50s, circuit-breaker.call-timeout = 50s }

        """;

    public static ControlSettings Default { get; } = With(string.Empty);

    public static ControlSettings With(string hocon) => ControlSettings.Parse(Settings.Text + Patient + hocon);
}

/// <summary>A folder that goes with the spec.</summary>
internal sealed class TemporaryFolder : IDisposable
{
    public string Path { get; } = Directory.CreateTempSubdirectory("dmp-journal-").FullName;

    public string File(string name) => System.IO.Path.Combine(Path, name);

    public void Dispose() => Directory.Delete(Path, recursive: true);
}

/// <summary>Among the notices: a warning or an error was logged.</summary>
internal sealed record LoggedLine(string Text);

/// <summary>A journal's guardian in an actor system of its own, asked from outside as a machine's supervisor would ask
/// it.</summary>
internal sealed class OpenJournal : IAsyncDisposable
{
    // Generous: every answer has a limit of its own, and a spec that comes here has failed.
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(120);

    // What is logged is kept for the spec; the spec's own output stays readable.
    private static readonly Config Quiet = ConfigurationFactory.ParseString("akka { loggers = [], stdout-loglevel = OFF }");

    private readonly ActorSystem system;
    private readonly IActorRef guardian;
    private readonly System.Threading.Channels.Channel<object> notices = System.Threading.Channels.Channel.CreateUnbounded<object>();
    private long lastId;

    public OpenJournal(JournalConnection connection, string kernel = Journals.Kernel, ControlSettings? settings = null)
    {
        settings ??= Journals.Default;
        system = ActorSystem.Create("specs", Quiet.WithFallback(settings.Configuration));
        var started = new TaskCompletionSource<IActorRef>(TaskCreationOptions.RunContinuationsAsynchronously);
        system.ActorOf(Props.Create(() => new Parent(JournalGuardian.Props(connection, kernel, settings), started, notices.Writer, Logged)));
        guardian = started.Task.WaitAsync(Limit).GetAwaiter().GetResult();
    }

    public OpenJournal(string path, string kernel = Journals.Kernel, ControlSettings? settings = null)
        : this(JournalConnection.Parse(path), kernel, settings)
    {
    }

    /// <summary>Warnings and errors so far.</summary>
    public System.Collections.Concurrent.ConcurrentQueue<string> Logged { get; } = new();

    public Task<object> IntendAsync(params ImmutableArray<JournaledPatch> patches) => AskAsync(id => new Intend(id, patches));

    public Task<object> CompleteAsync(long transaction, ImmutableArray<long> applied, params ImmutableArray<AbortedPatch> aborted) =>
        AskAsync(id => new Complete(id, transaction, applied, aborted));

    public Task<object> RecordAsync(params ImmutableArray<JournalEvent.Fact> facts) => AskAsync(id => new JournalProtocol.Record(id, facts));

    public async Task<JournalState> StateAsync() => Assert.IsType<State>(await AskAsync(id => new GetState(id))).Journal;

    public async Task<string> FailureAsync() => Assert.IsType<JournalFailed>(await AskAsync(id => new GetState(id))).Reason;

    public async Task<long> ApplyAsync(params ImmutableArray<long> offsets)
    {
        long transaction = Assert.IsType<Intended>(await IntendAsync([.. offsets.Select(Journals.Patch)])).Transaction;
        Assert.Empty(Assert.IsType<Completed>(await CompleteAsync(transaction, offsets)).Open);
        return transaction;
    }

    public async Task<T> NoticeAsync<T>()
    {
        using var limit = new CancellationTokenSource(Limit);
        while (true)
        {
            if (await notices.Reader.ReadAsync(limit.Token) is T notice)
            {
                return notice;
            }
        }
    }

    public async Task<object> AskAsync(Func<long, object> request) => await guardian.Ask(request(++lastId), Limit);

    public async ValueTask DisposeAsync()
    {
        Assert.IsType<Closed>(await AskAsync(id => new Close(id)));
        await system.Terminate();
    }

    private sealed class Parent : ReceiveActor
    {
        public Parent(
            Props guardian,
            TaskCompletionSource<IActorRef> started,
            System.Threading.Channels.ChannelWriter<object> notices,
            System.Collections.Concurrent.ConcurrentQueue<string> logged)
        {
            Context.System.EventStream.Subscribe(Self, typeof(Warning));
            Context.System.EventStream.Subscribe(Self, typeof(Error));
            Receive<LogEvent>(entry =>
            {
                string text = entry.Message.ToString()!;
                logged.Enqueue(text);
                notices.TryWrite(new LoggedLine(text));
            });
            started.SetResult(Context.ActorOf(guardian, "journal"));
            ReceiveAny(notice => notices.TryWrite(notice));
        }
    }
}
