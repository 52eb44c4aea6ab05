using Akka.Actor;
using Akka.Serialization;
using Akka.TestKit.Xunit2;
using Dmp.Actors.Journal;
using Dmp.Kvm.Cpu;
using Google.Protobuf;

namespace Dmp.Actors.Specs.Journal;

public sealed class JournalSerializerSpecs : TestKit
{
    public JournalSerializerSpecs()
        : base(Settings.InVirtualTime)
    {
    }

    public static TheoryData<JournalEvent, string, string> Stored => new()
    {
        { new JournalEvent.PatchIntended(3, [Journals.Patch(-2)]), "in", "0803121608031205" + "9c580f1f00" + "180322090a0570757368661001" },
        { new JournalEvent.PatchApplied(3, [0x10, -1]), "ap", "080312022001" },
        { new JournalEvent.PatchAborted(3, [0x10], "no"), "ab", "08031201201a026e6f" },
        { new JournalEvent.PatchRefused(1, [0xf4], "no", ExitKind.Halt), "rf", "08021201f41a026e6f220448616c74" },
        { new JournalEvent.PatchReverted(1, "no"), "rv", "080212026e6f" },
        { new JournalEvent.PatchMismatched(1, "no"), "mm", "080212026e6f" },
        { new JournalEvent.SiteRetired(1, "no"), "rt", "080212026e6f" },
        { new JournalEvent.PatchObserved(1, 5, TimeSpan.FromMilliseconds(7)), "ob", "080210051807" },
        { new JournalEvent.SiteDisabled(1), "di", "0802" },
        { new JournalEvent.SiteEnabled(1), "en", "0802" },
    };

    [Theory(DisplayName = "What is stored never changes: identifier, manifest and bytes")]
    [MemberData(nameof(Stored))]
    public void Stable_format(JournalEvent happened, string manifest, string bytes)
    {
        var serializer = Assert.IsType<JournalSerializer>(Sys.Serialization.FindSerializerFor(happened));
        Assert.Equal(27072, serializer.Identifier);
        Assert.Equal(manifest, serializer.Manifest(happened));
        Assert.Equal(bytes, Convert.ToHexStringLower(serializer.ToBinary(happened)));
        Assert.Equal(happened, serializer.FromBinary(Convert.FromHexString(bytes), manifest));
    }

    [Fact(DisplayName = "What the kernel and its sites are called comes back, from events and from snapshots")]
    public void Names()
    {
        const ulong Base = 0xffffffff81000000;
        var intended = new JournalEvent.PatchIntended(1, [Journals.Patch(0x10) with { Symbol = "f+0x0" }]) { KernelBase = Base };
        var refused = new JournalEvent.PatchRefused(0x40, [0xf4], "no", ExitKind.Halt) { Symbol = "g+0x2", KernelBase = Base + 1 };
        Assert.Equal("f+0x0", Assert.IsType<JournalEvent.PatchIntended>(Again(intended)).Patches[0].Symbol);
        Assert.Equal(Base, Assert.IsType<JournalEvent.PatchIntended>(Again(intended)).KernelBase);
        Assert.Equal(refused, Again(refused));

        var state = (JournalState)Again(JournalState.Empty.Apply(intended).Apply(refused));
        Assert.Equal(Base + 1, state.KernelBase);
        Assert.Equal("f+0x0", state.Entries[0x10].Patch.Symbol);
        Assert.Equal("g+0x2", state.Refusals[0x40].Symbol);

        static object Again(object value) => JournalCodec.Decode(JournalCodec.Encode(value), JournalCodec.Manifest(value));
    }

    [Fact(DisplayName = "A journal from before there were names is read, has none, and keeps those it is told later")]
    public void Older_journals()
    {
        // The bytes that the versions without names stored.
        var intended = (JournalEvent)JournalCodec.Decode(
            Convert.FromHexString("0803121608031205" + "9c580f1f00" + "180322090a0570757368661001"), "in");
        var refused = (JournalEvent)JournalCodec.Decode(Convert.FromHexString("08021201f41a026e6f220448616c74"), "rf");
        JournalState old = JournalState.Empty.Apply(intended).Apply(refused);
        Assert.Equal((0UL, "", ""), (old.KernelBase, old.Entries[-2].Patch.Symbol, old.Refusals[1].Symbol));

        JournalState told = old.Apply(new JournalEvent.PatchRefused(1, [0xf4], "no", ExitKind.Halt) { Symbol = "f+0x1", KernelBase = 0x1000 });
        Assert.Equal((0x1000UL, "f+0x1"), (told.KernelBase, told.Refusals[1].Symbol));
        Assert.Equal(0x1000UL, told.Apply(intended).KernelBase);
    }

    [Fact(DisplayName = "Snapshots have the serializer of the events")]
    public void Snapshots() => Assert.IsType<JournalSerializer>(Sys.Serialization.FindSerializerFor(JournalState.Empty));

    [Fact(DisplayName = "Fields that a newer version added are passed over")]
    public void Added_fields()
    {
        // Field 15, a text; field 100, a number.
        byte[] newer = [.. JournalCodec.Encode(new JournalEvent.PatchReverted(0x10, "asked to")), 0x7a, 3, (byte)'n', (byte)'e', (byte)'w', 0xa0, 6, 1];
        Assert.Equal(new JournalEvent.PatchReverted(0x10, "asked to"), JournalCodec.Decode(newer, "rv"));
    }

    [Theory(DisplayName = "Fields that an older version did not write read as nothing")]
    [InlineData("in")]
    [InlineData("ap")]
    [InlineData("ab")]
    [InlineData("rf")]
    [InlineData("rv")]
    [InlineData("mm")]
    [InlineData("rt")]
    [InlineData("ob")]
    [InlineData("di")]
    [InlineData("en")]
    public void Missing_fields(string manifest) =>
        Assert.NotNull(JournalState.Empty.Apply(Assert.IsAssignableFrom<JournalEvent>(JournalCodec.Decode([], manifest))));

    [Fact(DisplayName = "A snapshot of nothing, a patch of nothing and a state that only a newer version knows are readable")]
    public void Strange_snapshots()
    {
        Assert.Equal(JournalState.Empty, JournalCodec.Decode([], "ss"));
        var newer = new Actors.Journal.Wire.Snapshot
        {
            Entries = { new Actors.Journal.Wire.Entry { Status = (Actors.Journal.Wire.Status)99 }, new Actors.Journal.Wire.Entry() },
        };
        JournalEntry entry = Assert.Single(((JournalState)JournalCodec.Decode(newer.ToByteArray(), "ss")).Entries).Value;
        Assert.Equal(PatchStatus.Aborted, entry.Status);
    }

    [Fact(DisplayName = "An unknown manifest is named")]
    public void Unknown_manifest()
    {
        var error = Assert.Throws<JournalFormatException>(() => JournalCodec.Decode([], "zz"));
        Assert.Contains("\"zz\"", error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact(DisplayName = "Damaged bytes are an error of the format or another event, and nothing else")]
    public void Damaged_bytes()
    {
        var random = new Random(1);
        string[] manifests = ["in", "ap", "ab", "rf", "rv", "mm", "rt", "ob", "di", "en", "ss"];
        for (int round = 0; round < 20_000; round++)
        {
            byte[] bytes = new byte[random.Next(40)];
            random.NextBytes(bytes);
            try
            {
                object value = JournalCodec.Decode(bytes, manifests[round % manifests.Length]);
                Assert.NotNull(value is JournalEvent happened ? JournalState.Empty.Apply(happened) : value);
            }
            catch (JournalFormatException)
            {
            }
        }
    }
}
