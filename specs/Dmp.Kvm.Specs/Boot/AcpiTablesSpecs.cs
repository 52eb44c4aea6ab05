using System.Buffers.Binary;
using System.Text;
using Dmp.Kvm.Boot;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.Boot;

public class AcpiTablesSpecs
{
    private readonly ArrayRam _ram = new(2);

    [Fact(DisplayName = "Every table's bytes add up to zero")]
    public void Checksums()
    {
        Span<byte> rsdp = Rsdp(cpus: 3);
        Assert.Equal(0, Sum(rsdp[..20]));
        Assert.Equal(0, Sum(rsdp));
        foreach (string name in new[] { "XSDT", "FACP", "APIC", "DSDT" })
        {
            Assert.Equal(0, Sum(Tables(3)[name]));
        }
    }

    [Fact(DisplayName = "The root pointer is where a guest looks for it, and every table in the reserved area")]
    public void Places()
    {
        GuestPhysicalAddress rsdp = AcpiTables.Write(_ram, 255 - 1);
        Assert.Equal(0UL, rsdp.Value % 16);
        Assert.InRange(rsdp.Value, 0xE0000UL, 0xFFFFFUL);
        Assert.False(_ram.Slice(new(0xFF000), 0x1000).ContainsAnyExcept((byte)0));
    }

    [Theory(DisplayName = "The MADT names every CPU, the I/O APIC, the two overrides and the NMI line")]
    [InlineData(1)]
    [InlineData(16)]
    public void Madt(int cpus)
    {
        byte[] madt = Tables(cpus)["APIC"];
        Assert.Equal(0xFEE00000u, U32(madt, 36));
        var structures = new List<byte[]>();
        for (int at = 44; at < madt.Length; at += madt[at + 1])
        {
            structures.Add(madt[at..(at + madt[at + 1])]);
        }

        Assert.Equal(cpus + 4, structures.Count);
        Assert.All(structures.Take(cpus).Select((s, i) => (s, i)), x => Assert.Equal([0, 8, (byte)x.i, (byte)x.i, 1, 0, 0, 0], x.s));
        Assert.Equal([1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0], structures[cpus]);
        Assert.Equal([2, 10, 0, 0, 2, 0, 0, 0, 0, 0], structures[cpus + 1]);
        Assert.Equal([2, 10, 0, 9, 9, 0, 0, 0, 0x0D, 0], structures[cpus + 2]);
        Assert.Equal([4, 6, 0xFF, 0, 0, 1], structures[cpus + 3]);
    }

    [Fact(DisplayName = "The FADT's 32-bit and 64-bit fields say the same")]
    public void Fadt()
    {
        byte[] fadt = Tables(1)["FACP"];
        Assert.Equal(276, fadt.Length);
        Assert.Equal((ulong)U32(fadt, 40), U64(fadt, 140));
        Assert.Equal((ulong)U32(fadt, 56), U64(fadt, 148 + 4));
        Assert.Equal((ulong)U32(fadt, 64), U64(fadt, 172 + 4));
        Assert.Equal((ulong)U32(fadt, 76), U64(fadt, 208 + 4));
        Assert.Equal(fadt[88] * 8, fadt[149]);
        Assert.Equal(fadt[89] * 8, fadt[173]);
        Assert.Equal(fadt[91] * 8, fadt[209]);
        Assert.Equal("FACS", Encoding.ASCII.GetString(_ram.Slice(new(U32(fadt, 36)), 4)));
        Assert.Equal(0u, U32(fadt, 36) % 64);
        Assert.Equal(0xCF9UL, U64(fadt, 120));
    }

    [Fact(DisplayName = "The DSDT begins with the soft-off state and names the serial port")]
    public void Dsdt()
    {
        byte[] dsdt = Tables(1)["DSDT"];
        byte[] softOff = [0x08, (byte)'\\', (byte)'_', (byte)'S', (byte)'5', (byte)'_', 0x12, 0x08, 4, 0x0A, 5, 0x0A, 5, 0, 0];
        Assert.Equal(softOff, dsdt[36..(36 + softOff.Length)]);

        // EisaId ("PNP0501") and IO (Decode16, 0x3F8, 0x3F8, 1, 8), IRQ 4, as iasl encodes them
        Assert.True(dsdt.AsSpan().IndexOf<byte>([0x0C, 0x41, 0xD0, 0x05, 0x01]) > 0);
        Assert.True(dsdt.AsSpan().IndexOf<byte>([0x47, 1, 0xF8, 3, 0xF8, 3, 1, 8, 0x22, 0x10, 0, 0x79, 0]) > 0);
    }

    [Theory(DisplayName = "A number of CPUs that cannot be described is refused")]
    [InlineData(0)]
    [InlineData(-1)]
    [InlineData(255)]
    public void TooManyCpus(int cpus) => Assert.Throws<BootException>(() => AcpiTables.Write(_ram, cpus));

    private Span<byte> Rsdp(int cpus) => _ram.Slice(AcpiTables.Write(_ram, cpus), 36);

    private Dictionary<string, byte[]> Tables(int cpus)
    {
        byte[] xsdt = Table(U64(Rsdp(cpus), 24));
        var tables = new Dictionary<string, byte[]> { ["XSDT"] = xsdt };
        for (int at = 36; at < xsdt.Length; at += 8)
        {
            byte[] table = Table(U64(xsdt, at));
            tables.Add(Encoding.ASCII.GetString(table, 0, 4), table);
        }

        tables.Add("DSDT", Table(U64(tables["FACP"], 140)));
        return tables;
    }

    private byte[] Table(ulong address) => _ram.Slice(new(address), (int)U32(_ram.Slice(new(address), 8), 4)).ToArray();

    private static int Sum(ReadOnlySpan<byte> bytes)
    {
        int sum = 0;
        foreach (byte b in bytes)
        {
            sum += b;
        }

        return sum & 0xFF;
    }

    private static uint U32(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt32LittleEndian(bytes[offset..]);

    private static ulong U64(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt64LittleEndian(bytes[offset..]);
}
