using System.Collections.Concurrent;
using Dmp.Actors.Console;

namespace Dmp.Host.Terminal;

/// <summary>
/// Guest output on stdout, byte by byte as the guest wrote it. A thread of its own writes, so that a terminal stopped with Ctrl-s
/// or a slow pipe holds up neither the guest nor the control side.
/// </summary>
internal sealed class StdoutSink : IConsoleSink, IDisposable
{
    // For a reader that has stopped reading; the run is over, and the process has to end.
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(5);

    private readonly BlockingCollection<ReadOnlyMemory<byte>> queue = [];
    private readonly Stream output;
    private readonly TextWriter error;
    private readonly Thread writer;
    private bool broken;

    public StdoutSink(Stream output, TextWriter error)
    {
        this.output = output;
        this.error = error;
        writer = new Thread(WriteAll) { Name = "stdout", IsBackground = true };
        writer.Start();
    }

    /// <inheritdoc />
    public void Write(ReadOnlyMemory<byte> bytes) => queue.Add(bytes);

    /// <summary>Waits until everything is written. Nothing may be written after that.</summary>
    public void Complete()
    {
        queue.CompleteAdding();
        if (!writer.Join(Patience))
        {
            error.WriteLine("dmp: nobody reads stdout; the end of the guest's output is lost");
        }
    }

    /// <inheritdoc />
    public void Dispose()
    {
        // The collection itself stays: its thread may still be stuck in a write.
        queue.CompleteAdding();
    }

    private void WriteAll()
    {
        foreach (ReadOnlyMemory<byte> bytes in queue.GetConsumingEnumerable())
        {
            try
            {
                if (!broken)
                {
                    output.Write(bytes.Span);
                    output.Flush();
                }
            }
            catch (IOException failure)
            {
                // The reader has gone ("dmp run ... | head"). The guest runs on: its report is still wanted.
                broken = true;
                error.WriteLine($"dmp: stdout is closed ({failure.Message}); the rest of the guest's output is dropped");
            }
        }
    }
}
