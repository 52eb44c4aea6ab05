using Dmp.Kvm.CodeScan;
using Dmp.Kvm.Memory;
using FsCheck.Xunit;

namespace Dmp.Kvm.Specs.CodeScan;

public class KnownCodeSpecs
{
    private const byte Nop = 0x90;
    private const byte Int3 = 0xCC;
    private const int PageSize = Paging.PageSize;
    private const int Site = 0x100;

    private readonly CodeScanner scanner = new();
    private readonly List<int> found = [];

    [Property(
        DisplayName = "Whatever the guest is changing, and however often the page is scanned meanwhile, the silent instructions that may run are found and nothing else",
        MaxTest = 100)]
    public void Changing_code(int seed)
    {
        Random random = new(seed);
        ChangingCode code = new(random);
        KnownCode? known = null;
        for (int scan = 0; scan < 20; scan++)
        {
            int[] live = [.. code.Live];
            int spill = Scan(code.Window, known, live[random.Next(live.Length)]);
            Assert.True(code.Silent.SequenceEqual(found), $"{scan}: {Difference(code)} with {code}");
            known = known?.After(code.Page, scanner.Starts, spill) ?? new KnownCode(code.Page, scanner.Starts, spill);
            for (int step = random.Next(1, 4); step > 0; step--)
            {
                code.Step();
            }
        }
    }

    [Property(DisplayName = "Other code with INT3 in it is scanned as it is", MaxTest = 200)]
    public void Replaced_code(int seed)
    {
        Random random = new(seed);
        KnownCode known = Known(new ChangingCode(random).Window);
        byte[] now = new ChangingCode(random).Window;
        for (int count = 0; count < 500; count++)
        {
            now[random.Next(PageSize)] = Int3;
        }

        AssertAsNew(now, known);
    }

    [Fact(DisplayName = "A return with INT3 behind it, where a jump to a return stood, is scanned as it is")]
    public void Return_thunk()
    {
        KnownCode known = Known(Page("E9 11 22 33 44 CC CC CC 9C"));
        byte[] now = Page("C3 CC CC CC CC CC CC CC 9C");
        AssertAsNew(now, known);
        Assert.Equal([Site + 8], found);
    }

    [Theory(DisplayName = "A jump becomes a return with INT3 behind it, and a return a jump, without any of it being code")]
    [InlineData("E9 9C 9D 9C 9D 9C", "C3 CC CC CC CC 9C")]
    [InlineData("C3 CC CC CC CC 9C", "E9 9C 9D 9C 9D 9C")]
    public void Static_call(string before, string after)
    {
        byte[] now = Page(before);
        KnownCode known = Known(now);
        byte[] aim = Page(after);
        now[Site] = Int3;
        AssertFound();
        aim.AsSpan(Site + 1, 4).CopyTo(now.AsSpan(Site + 1));
        AssertFound();
        now[Site] = aim[Site];
        AssertFound();

        void AssertFound()
        {
            int spill = Scan(now, known, 0);
            Assert.Equal([Site + 5], found);
            known = known.After(now, scanner.Starts, spill);
        }
    }

    [Theory(DisplayName = "An INT3 is one byte where the page never ran, where most of the code around it is other code, and where it stood before")]
    [InlineData(false, false)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    public void As_it_is(bool ranBefore, bool stoodBefore)
    {
        byte[] now = Page("CC 9C 9D CF 9C");
        byte[] before = Page("B8 9C 9D CF 9C");
        before.AsSpan(Site + 5, 64).Fill(0x91);
        before.AsSpan(Site - 64, 60).Fill(0x91);
        AssertAsNew(now, stoodBefore ? Known(now) : ranBefore ? Known(before) : null);
        Assert.Equal([Site + 1, Site + 2, Site + 3, Site + 4], found);
    }

    [Fact(DisplayName = "Where the guest is about to execute there is code")]
    public void Executed()
    {
        byte[] now = Page("B8 9C 9D CF 9C");
        KnownCode known = Known(now);
        now[Site] = Int3;
        _ = Scan(now, known, Site + 5);
        Assert.Empty(found);
        _ = Scan(now, known, Site + 2);
        Assert.Equal([Site + 1, Site + 2, Site + 3, Site + 4], found);
    }

    [Fact(DisplayName = "A change at the end of a page goes on in the next one")]
    public void End_of_page()
    {
        byte[] now = [.. Page("90"), 0x9C, 0x9C, 0x9C];
        now[PageSize - 2] = 0xE8;
        KnownCode known = Known(now);
        now[PageSize - 2] = Int3;
        now[PageSize - 1] = 0x9D;
        Assert.Equal(3, Scan(now, known, 0));
        Assert.Empty(found);
    }

    private static byte[] Page(string hex)
    {
        byte[] page = new byte[PageSize];
        page.AsSpan().Fill(Nop);
        Convert.FromHexString(hex.Replace(" ", "", StringComparison.Ordinal)).CopyTo(page, Site);
        return page;
    }

    private KnownCode Known(byte[] window)
    {
        int spill = Scan(window, null, 0);
        return new KnownCode(window.AsSpan(0, PageSize), scanner.Starts, spill);
    }

    private void AssertAsNew(byte[] window, KnownCode? known)
    {
        _ = Scan(window, null, 0);
        int[] expected = [.. found];
        for (int scan = 0; scan < 3; scan++)
        {
            int spill = Scan(window, known, 0);
            Assert.Equal(expected, found);
            known = known?.After(window.AsSpan(0, PageSize), scanner.Starts, spill);
        }
    }

    private string Difference(ChangingCode code) =>
        $"lost {string.Join(' ', code.Silent.Except(found).Select(at => $"{at:x3}"))}, wrong {string.Join(' ', found.Except(code.Silent).Select(at => $"{at:x3}"))}";

    private int Scan(byte[] window, KnownCode? known, int boundary) =>
        scanner.Scan(window, new ScanRequest(0, PageSize, boundary, 0), found, known);
}
