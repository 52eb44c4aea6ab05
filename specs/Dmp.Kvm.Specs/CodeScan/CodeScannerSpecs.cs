using Dmp.Kvm.CodeScan;
using FsCheck.Xunit;
using Iced.Intel;

namespace Dmp.Kvm.Specs.CodeScan;

public class CodeScannerSpecs
{
    private const byte Nop = 0x90;

    private readonly CodeScanner scanner = new();
    private readonly List<int> found = [];

    [Theory(DisplayName = "Every silent instruction is found where it begins")]
    [InlineData("9C")] // pushfq
    [InlineData("66 9C")] // pushf
    [InlineData("9D")] // popfq
    [InlineData("66 9D")] // popf
    [InlineData("48 CF")] // iretq
    [InlineData("CF")] // iretd
    [InlineData("66 CF")] // iret
    [InlineData("0F A2")] // cpuid
    [InlineData("0F 01 D9")] // vmmcall
    [InlineData("8C C8")] // mov eax, cs
    [InlineData("8C D0")] // mov eax, ss
    [InlineData("48 8C D1")] // mov rcx, ss
    [InlineData("8C 0C 24")] // mov [rsp], cs
    [InlineData("0F 02 C1")] // lar
    [InlineData("0F 03 C1")] // lsl
    [InlineData("0F 00 E0")] // verr
    [InlineData("0F 00 E8")] // verw
    [InlineData("0F 00 2C 24")] // verw [rsp]
    [InlineData("0F 01 04 24")] // sgdt
    [InlineData("0F 01 0C 24")] // sidt
    [InlineData("0F 00 C0")] // sldt
    [InlineData("0F 00 C8")] // str
    [InlineData("0F 01 E0")] // smsw
    public void Silent(string hex)
    {
        byte[] code = Bytes(hex);
        Assert.Equal(0, Scan([Nop, Nop, .. code, Nop], 0, 3 + code.Length, 0));
        Assert.Equal([2], found);
    }

    [Theory(DisplayName = "Other instructions are left alone, and so are immediates that look like silent ones")]
    [InlineData("FA")] // cli
    [InlineData("0F 20 D8")] // mov rax, cr3
    [InlineData("8C D8")] // mov eax, ds
    [InlineData("8E D0")] // mov ss, eax
    [InlineData("B8 9C 9D CF 9C")] // mov eax, imm32
    [InlineData("48 B8 0F A2 9C 9D CF 48 CF 9C")] // mov rax, imm64
    [InlineData("E8 9C 9D CF 9C")] // call
    [InlineData("48 8B 05 1D CF 13 01")] // mov rax, [rip + disp]
    [InlineData("06 0E")] // none in 64-bit mode
    public void Others(string hex)
    {
        byte[] code = Bytes(hex);
        Assert.Equal(0, Scan(code, 0, code.Length, 0));
        Assert.Empty(found);
    }

    [Fact(DisplayName = "An instruction that reaches into the page is not taken for another at its start")]
    public void Into_the_page()
    {
        byte[] window = [Nop, 0x48, 0x8B, 0x05, 0x1D, 0xCF, 0x13, 0x01, 0x9C, Nop];
        Assert.Equal(0, Scan(window, 5, 5, 1));
        Assert.Equal([3], found);
    }

    [Fact(DisplayName = "A silent instruction that begins before the page is not one of the page's")]
    public void Before_the_page()
    {
        Assert.Equal(0, Scan([0x48, 0xCF, Nop, 0x9D], 1, 3, 0));
        Assert.Equal([2], found);
    }

    [Fact(DisplayName = "The last instruction's bytes beyond the page are counted, and it is found when it is silent")]
    public void Out_of_the_page()
    {
        Assert.Equal(4, Scan([Nop, 0xB8, 1, 2, 3, 4, 0x9C], 0, 2, 0));
        Assert.Empty(found);
        Assert.Equal(1, Scan([Nop, 0x0F, 0xA2, 0x9C], 0, 2, 0));
        Assert.Equal([1], found);
        Assert.Equal(0, Scan([Nop, 0x48], 0, 2, 0));
        Assert.Empty(found);
    }

    [Fact(DisplayName = "Before the fetched address the boundaries are inferred")]
    public void Inferred()
    {
        List<byte> window = [];
        for (int round = 0; round < 40; round++)
        {
            window.AddRange(Bytes("48 89 C8 9C 48 83 C0 08 B8 9C 00 00 00 58"));
        }

        int boundary = 30 * 14;
        _ = Scan([.. window], 3 * 14, window.Count - (3 * 14), boundary);
        Assert.Equal(Enumerable.Range(0, 37).Select(round => (round * 14) + 3), found);
    }

    [Fact(DisplayName = "A sure start decides where inference would be wrong, unless it does not lead to the fetched address")]
    public void Sure_start()
    {
        byte[] window = [0xB8, 0x9C, 0x9C, 0x9C, 0x9C, 0x9C, Nop, 0x9D];
        _ = Scan(window, 0, 8, 6, sure: 0);
        Assert.Equal([5, 7], found);
        _ = Scan(window, 0, 8, 6, sure: 1);
        Assert.Equal([1, 2, 3, 4, 5, 7], found);
        _ = Scan(window, 0, 8, 3, sure: 0);
        Assert.Equal([2, 3, 4, 5, 7], found);
    }

    [Property(DisplayName = "In a random stream the found set is the true set from the boundary on, and in order", MaxTest = 200)]
    public void Streams(int seed)
    {
        Random random = new(seed);
        Assembler assembler = new(64);
        for (int index = 0; index < 200; index++)
        {
            RandomCode.Emit(assembler, random);
        }

        using MemoryStream stream = new();
        assembler.Assemble(new StreamCodeWriter(stream), 0x1000);
        byte[] code = stream.ToArray();
        List<int> starts = [];
        List<int> silent = [];
        int at = 0;
        foreach (Instruction instruction in assembler.Instructions)
        {
            Decoder decoder = Decoder.Create(64, new ByteArrayCodeReader(code, at, code.Length - at));
            Instruction decoded = decoder.Decode();
            Assert.Equal(instruction.Mnemonic, decoded.Mnemonic);
            starts.Add(at);
            if (SilentInstructions.IsSilent(instruction))
            {
                silent.Add(at);
            }

            at += decoded.Length;
        }

        int boundary = starts[random.Next(starts.Count)];
        int start = random.Next(code.Length / 2);
        int length = random.Next(1, code.Length - start);
        int tail = Scan(code, start, length, boundary);
        int end = start + length;
        Assert.Equal(
            silent.Where(s => s >= boundary && s >= start && s < end),
            found.Select(f => f + start).Where(f => f >= boundary));
        Assert.Equal(found.Distinct().Order(), found);
        if (boundary < end)
        {
            Assert.Equal(starts.Append(code.Length).First(s => s >= end) - end, tail);
        }

        // With a sure start the part before the boundary is known as well.
        int sure = starts.First(s => s >= start || s == starts[^1]);
        if (sure >= start && sure <= boundary)
        {
            _ = Scan(code, start, length, boundary, sure);
            Assert.Equal(
                silent.Where(s => s >= sure && s < Math.Max(end, boundary)),
                found.Select(f => f + start));
        }
    }

    private static byte[] Bytes(string hex) => Convert.FromHexString(hex.Replace(" ", "", StringComparison.Ordinal));

    private int Scan(byte[] window, int start, int length, int boundary, int sure = -1) =>
        scanner.Scan(window, new ScanRequest(start, length, boundary, sure), found);
}
