using System.Globalization;
using Dmp.Actors.Journal;

namespace Dmp.Actors.Specs.Journal;

/// <summary>What was acknowledged is there, however the process ended.</summary>
public sealed class DurabilitySpecs : IDisposable
{
    private const int Rounds = 10;
    private const int MostAcknowledgements = 120;
    private const int Endless = 1_000_000;
    private const long RoundDistance = 0x10000000;

    private readonly TemporaryFolder folder = new();

    public void Dispose() => folder.Dispose();

    [Fact(DisplayName = "Nothing acknowledged is lost to kill -9, at ten random moments")]
    public async Task Kill_9()
    {
        var random = new Random(9);
        string file = folder.File("patches.db");
        var intended = new HashSet<long>();
        var applied = new HashSet<long>();
        for (int round = 0; round < Rounds; round++)
        {
            using (WriterProcess writer = WriterProcess.Start(file, round * RoundDistance, Endless))
            {
                int acknowledgements = random.Next(1, MostAcknowledgements);
                for (int count = 0; count < acknowledgements; count++)
                {
                    Take(await writer.LineAsync(), intended, applied);
                }

                // It goes on writing while it is being killed; what it still says counts too.
                Task<string[]> rest = writer.LinesAsync();
                await writer.KillAsync();
                foreach (string line in await rest)
                {
                    Take(line, intended, applied);
                }
            }

            JournalState state = (await JournalReader.ReadAsync(JournalConnection.Parse(file), Journals.Default))[Journals.Kernel];
            Assert.All(intended, offset => Assert.True(state.Entries.ContainsKey(offset)));
            Assert.All(applied, offset => Assert.Equal(PatchStatus.Applied, state.Entries[offset].Status));
            Assert.DoesNotContain(state.Entries.Values, entry => entry.Status == PatchStatus.Intended);
        }

        Assert.NotEmpty(applied);
    }

    [SkippableFact(DisplayName = "On a full disk the journal says so in one line, keeps what it has, and goes on when there is space again")]
    public async Task Full_disk()
    {
        // The ballast leaves room for some dozens of events.
        using WriterProcess writer = WriterProcess.StartWithMounts(
            "mount -t tmpfs -o size=1m tmpfs \"$1\"; head -c 400k /dev/zero > \"$1/ballast\"",
            folder.Path,
            folder.File("patches.db"),
            "256",
            Endless.ToString(CultureInfo.InvariantCulture),
            folder.File("ballast"));
        string[] lines = await writer.LinesAsync();
        string failed = Assert.Single(lines, line => line.StartsWith("failed ", StringComparison.Ordinal));
        Assert.Contains("the disk is full; free some space", failed, StringComparison.Ordinal);
        Assert.Contains(folder.File("patches.db"), failed, StringComparison.Ordinal);
        Assert.Equal("logged 1", lines[^2]);
        int applied = lines.Count(line => line.StartsWith("applied ", StringComparison.Ordinal));
        Assert.InRange(applied, 1, Endless);
        int again = int.Parse(lines[^1].Split(' ')[1], CultureInfo.InvariantCulture);

        // One more when the disk was full between its two events: what was owed was stored afterwards, or not.
        Assert.InRange(again, applied, applied + 1);
        Assert.Empty(await writer.Errors);
    }

    [SkippableTheory(DisplayName = "On a read-only file or folder the journal says so in one line")]
    [InlineData("mount --bind \"$1\" \"$1\"; mount -o remount,ro,bind \"$1\"")]
    [InlineData("mount --bind \"$1/patches.db\" \"$1/patches.db\"; mount -o remount,ro,bind \"$1/patches.db\"")]
    public async Task Read_only(string mount)
    {
        string file = folder.File("patches.db");
        await using (var journal = new OpenJournal(file))
        {
            await journal.ApplyAsync(0x10);
        }

        using WriterProcess writer = WriterProcess.StartWithMounts(mount, folder.Path, file, "256", "1");
        string[] lines = await writer.LinesAsync();
        Assert.StartsWith($"failed cannot open the patch journal ({file}): ", lines[0], StringComparison.Ordinal);
        Assert.Contains("read-only", lines[0], StringComparison.OrdinalIgnoreCase);
        Assert.EndsWith("make it writable, or choose another file with --journal", lines[0], StringComparison.Ordinal);
        Assert.Equal(["logged 1"], lines[1..]);
        Assert.Empty(await writer.Errors);
    }

    private static void Take(string? line, HashSet<long> intended, HashSet<long> applied)
    {
        string[] words = Assert.IsType<string>(line).Split(' ');
        (words[0] == "applied" ? applied : intended).Add(long.Parse(words[1], CultureInfo.InvariantCulture));
    }
}
