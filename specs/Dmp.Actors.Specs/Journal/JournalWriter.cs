using System.Globalization;
using Dmp.Actors.Journal;
using static Dmp.Actors.Journal.JournalProtocol;

namespace Dmp.Actors.Specs.Journal;

/// <summary>
/// A process of its own that writes to a journal and says so line by line, to be killed, or to be run on a disk that is full.
/// Arguments: the journal, the first patch's offset, the number of patches, and optionally a file that it deletes when the
/// journal fails, to go on when that has helped.
/// </summary>
internal static class JournalWriter
{
    public static async Task<int> Main(string[] arguments)
    {
        using var output = new StreamWriter(System.Console.OpenStandardOutput()) { AutoFlush = true };
        long first = long.Parse(arguments[1], CultureInfo.InvariantCulture);
        int count = int.Parse(arguments[2], CultureInfo.InvariantCulture);
        string? ballast = arguments.Length > 3 ? arguments[3] : null;
        await using var journal = new OpenJournal(arguments[0], settings: Journals.With("dmp.journal.first-retry = 100ms"));
        for (int patch = 0; patch < count; patch++)
        {
            long offset = first + (patch * 0x10);
            if (await journal.IntendAsync(Journals.Patch(offset)) is not Intended intended)
            {
                break;
            }

            await output.WriteLineAsync(string.Create(CultureInfo.InvariantCulture, $"intended {offset}"));
            if (await journal.CompleteAsync(intended.Transaction, [offset]) is not Completed)
            {
                break;
            }

            await output.WriteLineAsync(string.Create(CultureInfo.InvariantCulture, $"applied {offset}"));
        }

        if (await journal.AskAsync(id => new GetState(id)) is not JournalFailed failed)
        {
            await output.WriteLineAsync("done");
            return 0;
        }

        // The line is logged before the notice is sent.
        await journal.NoticeAsync<BecameUnavailable>();
        await output.WriteLineAsync($"failed {failed.Reason}");
        await output.WriteLineAsync(string.Create(CultureInfo.InvariantCulture, $"logged {journal.Logged.Count}"));
        if (ballast is not null)
        {
            File.Delete(ballast);
            JournalState state = (await journal.NoticeAsync<BecameAvailable>()).Journal;
            int applied = state.Entries.Values.Count(entry => entry.Status == PatchStatus.Applied);
            await journal.ApplyAsync(first - 0x10);
            await output.WriteLineAsync(string.Create(CultureInfo.InvariantCulture, $"again {applied}"));
        }

        return 0;
    }
}
