using Dmp.Actors.Machine;

namespace Dmp.Host.Terminal;

/// <summary>
/// Brings stdin to the guest on a thread of its own, because a read cannot be cancelled. The end of the input is not the end of
/// the run.
/// </summary>
internal static class InputForwarder
{
    private const int BufferSize = 1024;

    // How many reads the guest may leave unread before we stop reading. More than anybody types, so that Ctrl-a x is always
    // noticed; little enough that a large file that is piped in waits in its pipe and not in memory.
    private const int ReadsAhead = 64;

    /// <summary>Starts to forward.</summary>
    public static void Start(Stream input, MachineRun run) =>
        new Thread(() => Forward(input, run)) { Name = "stdin", IsBackground = true }.Start();

    private static void Forward(Stream input, MachineRun run)
    {
        var filter = new EscapeFilter();
        using var ahead = new SemaphoreSlim(ReadsAhead);
        byte[] buffer = new byte[BufferSize];
        while (!run.Completion.IsCompleted)
        {
            int read = Read(input, buffer);
            if (read == 0)
            {
                return;
            }

            var forGuest = new List<byte>(read);
            bool quit = filter.Feed(buffer.AsSpan(0, read), forGuest);
            if (forGuest.Count > 0)
            {
                ahead.Wait();
                run.SendAsync(forGuest.ToArray(), CancellationToken.None)
                    .ContinueWith(_ => Release(ahead), TaskScheduler.Default);
            }

            if (quit)
            {
                run.End("Ctrl-a x", ExitCodes.Success);
                return;
            }
        }
    }

    private static int Read(Stream input, byte[] buffer)
    {
        try
        {
            return input.Read(buffer);
        }
        catch (IOException)
        {
            // A terminal that went away; SIGHUP ends the run if it is to end.
            return 0;
        }
    }

    private static void Release(SemaphoreSlim ahead)
    {
        try
        {
            ahead.Release();
        }
        catch (ObjectDisposedException)
        {
            // The last answers come after the input has ended.
        }
    }
}
