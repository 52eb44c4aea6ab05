using System.Text;
using Dmp.Kvm.Devices;
using Dmp.Kvm.Memory;
using FsCheck;
using FsCheck.Fluent;

namespace Dmp.Kvm.Specs.Devices;

public class UartSpecs
{
    private const byte Ready = 0x0B; // DTR, RTS, OUT2
    private readonly SerialConsole console = new();
    private readonly List<bool> line = [];
    private readonly Uart16550 uart;

    public UartSpecs()
    {
        uart = new Uart16550(0x3F8, console, console, line.Add);
        console.InputArrived = uart.ReceiveInput;
    }

    [Fact(DisplayName = "Linux's autoconfiguration finds a 16550A: IER, loopback, FIFO bits, no enhanced registers")]
    public void Autoconfiguration()
    {
        Out(1, 0);
        Assert.Equal(0, In(1) & 0x0F);
        Out(1, 0xFF);
        Assert.Equal(0x0F, In(1));
        Out(1, 0);
        Out(4, 0x10 | 0x0A);
        Assert.Equal(0x90, In(6) & 0xF0);
        Out(4, 0);
        Out(3, 0xBF);
        Out(2, 0);
        Out(3, 0);
        Out(2, 1);
        Assert.Equal(3, In(2) >> 6);
        Out(3, 0x80);
        Assert.NotEqual(0, In(2)); // A 16650 would show EFR, zero, here.
        Out(2, 0x21);
        Assert.Equal(0, In(2) & 0x20); // A 16750 would show its 64-byte FIFO.
        Out(3, 0);
        Out(7, 0x5A);
        Assert.Equal(0x5A, In(7));
    }

    [Fact(DisplayName = "Linux's THRE and TXEN tests pass: enabling ETBEI reports an empty transmitter each time")]
    public void Thre_test()
    {
        Out(4, Ready);
        for (int i = 0; i < 3; i++)
        {
            Out(1, 2);
            Assert.Equal(0x60, In(5) & 0x60);
            Assert.Equal(2, In(2) & 0x0F);
            Assert.Equal(1, In(2) & 0x0F); // Reading IIR acknowledged it.
            Out(1, 0);
        }

        Assert.Equal([true, false, true, false, true, false], line);
    }

    [Fact(DisplayName = "A written character is output at once and interrupts again; without OUT2 the line is silent")]
    public void Transmit()
    {
        Out(1, 2);
        Out(0, (byte)'a');
        Assert.Empty(line);
        Out(4, Ready);
        Assert.Equal([true], line);
        In(2);
        Out(0, (byte)'b');
        Out(0, (byte)'c');
        Assert.Equal([true, false, true], line);
        Assert.Equal("abc", Output());
    }

    [Fact(DisplayName = "Input waits for DTR or RTS, then for room in the FIFO; nothing is lost")]
    public void Input_waits()
    {
        string text = string.Concat(Enumerable.Range(0, 50).Select(i => (char)('0' + (i % 10))));
        console.PutInput(Encoding.ASCII.GetBytes(text));
        Assert.Equal(0, In(5) & 1);
        Out(2, 0x87); // FIFO on and cleared, trigger 8
        Out(1, 1);
        Out(4, Ready);
        StringBuilder received = new();
        List<int> identifications = [];
        while ((In(5) & 1) != 0)
        {
            identifications.Add(In(2) & 0x0F);
            received.Append((char)In(0));
        }

        Assert.Equal(text, received.ToString());
        Assert.Equal(Enumerable.Repeat(0x4, 43).Concat(Enumerable.Repeat(0xC, 7)), identifications);
        Assert.Equal([true, false], line);
    }

    [Fact(DisplayName = "Divisor latches hide behind DLAB")]
    public void Divisor_latches()
    {
        Out(3, 0x83);
        Out(0, 0x0C);
        Out(1, 0x34);
        Assert.Equal((0x0C, 0x34), (In(0), In(1)));
        Out(3, 0x03);
        Assert.Equal(0, In(1));
        Assert.Equal("", Output());
    }

    [Fact(DisplayName = "In loop mode characters come back, an overrun is reported first, and the PC's line is cut")]
    public void Loop_mode()
    {
        Out(2, 1);
        Out(1, 0x0F);
        Out(4, 0x18);
        for (byte i = 0; i < 17; i++)
        {
            Out(0, i);
        }

        Assert.Equal(0x6, In(2) & 0x0F);
        Assert.Equal(0x63, In(5));
        Assert.Equal(0x4, In(2) & 0x0F);
        for (byte i = 0; i < 16; i++)
        {
            Assert.Equal(i, In(0));
        }

        Assert.Empty(line);
        Assert.Equal("", Output());
    }

    [Fact(DisplayName = "A modem control line that changes is reported until MSR is read")]
    public void Modem_status()
    {
        Out(1, 8);
        Out(4, 0x14); // Loop, OUT1: the ring indicator rises and the connected lines fall.
        Assert.Equal(0, In(2) & 0x0F);
        Assert.Equal(0x40 | 0x0B, In(6));
        Assert.Equal(1, In(2) & 0x0F);
        Out(4, 0x10);
        Assert.Equal(0x04, In(6)); // TERI
    }

    [Fact(DisplayName = "With implants on its ports the UART does on the line, to interrupts and to every read what it does without")]
    public void Implants() => Check.One(
        Config.QuickThrowOnFailure.WithMaxTest(3000).WithEndSize(200),
        Prop.ForAll(Gen.ListOf(Access()).ToArbitrary(), accesses =>
        {
            Twin plain = new(offers: false);
            Twin offering = new(offers: true);
            foreach (UartAccess access in accesses)
            {
                Assert.Equal(plain.Do(access), offering.Do(access));
                Assert.Equal(plain.Line, offering.Line);
            }

            Assert.Equal(plain.Text, offering.Text);
        }));

    [Fact(DisplayName = "Sending needs no attention while no interrupt comes of it")]
    public void Offers_transmission()
    {
        Twin twin = new(offers: true);
        Assert.True(twin.TakesBytes);
        twin.Write(3, 0x80);
        Assert.False(twin.TakesBytes);
        twin.Write(3, 0);
        twin.Write(4, 0x10);
        Assert.False(twin.TakesBytes);
        twin.Write(4, Ready);
        twin.Write(1, 2);
        Assert.True(twin.TakesBytes); // It has interrupted already.
        Assert.Equal(2, twin.Read(2) & 0x0F);
        Assert.False(twin.TakesBytes);
        twin.Write(1, 0);
        Assert.True(twin.TakesBytes);
    }

    [Fact(DisplayName = "A byte that was in the ring when the UART was switched over belongs to the time before")]
    public void Late_byte()
    {
        SerialConsole own = new();
        Uart16550 late = new(0x3F8, own, own, line.Add);
        DevicePage page = new();
        late.Offer(page);
        RingProducer producer = new(page);
        producer.ReadTail();
        late.Write(0x3F8 + 4, 1, Ready);
        late.Write(0x3F8 + 1, 1, 2);
        Assert.Equal(2u, late.Read(0x3F8 + 2, 1) & 0x0F);
        Assert.True(producer.Exchange((byte)'a'));
        Assert.Equal([true, false], line);

        late.PutOutTransmitted();

        Assert.Equal([true, false, true], line); // It has left, and the transmitter is empty again.
        byte[] buffer = new byte[2];
        Assert.Equal(1, own.TakeOutput(buffer));
    }

    [Fact(DisplayName = "When the line rises, no implant of another vCPU reads any more that there is no interrupt")]
    public void Published_before_the_line_rises()
    {
        DevicePage page = new();
        SerialConsole own = new();
        int rises = 0;
        Uart16550 published = new(0x3F8, own, own, level =>
        {
            const ulong NoInterrupt = 1;
            ulong identification = page[DevicePageField.Registers + (int)UartRegister.IirFcr];
            bool readable = (identification & DevicePage.RegisterReadable) != 0;
            Assert.False(level && readable && (identification & NoInterrupt) != 0);
            rises += level ? 1 : 0;
        });
        published.Offer(page);
        published.Write(0x3F8 + 4, 1, Ready);
        published.Write(0x3F8 + 1, 1, 3); // The transmitter is empty.
        _ = published.Read(0x3F8 + 2, 1);
        published.Write(0x3F8, 1, 'a'); // And is again.
        _ = published.Read(0x3F8 + 2, 1);
        _ = own.PutInput("b"u8); // A character has come.
        published.ReceiveInput();
        Assert.Equal(3, rises);
    }

    [Fact(DisplayName = "What implants transmitted is there for a reader though nobody signals it, and after the page is gone")]
    public void Readers()
    {
        Twin twin = new(offers: true);
        _ = twin.Do(new UartAccess(0, 'a', IsWrite: true));
        Assert.True(twin.Waits());
        Assert.Equal("a", twin.Text);
        _ = twin.Do(new UartAccess(0, 'b', IsWrite: true));
        twin.End();
        Assert.Equal("b", twin.Text);
    }

    private static Gen<UartAccess> Access() =>
        from register in Gen.Frequency((3, Gen.Constant(0)), (4, Gen.Choose(0, 7)))
        from value in register switch
        {
            0 => Gen.Choose('a', 'z'),
            1 => Gen.Choose(0, 15),
            3 => Gen.Elements(0, 0, 3, 0x80),
            4 => Gen.Elements((int)Ready, Ready, 0, 8, 0x10, 0x1F),
            _ => Gen.Choose(0, 255),
        }
        from kind in Gen.Choose(0, 9)
        select new UartAccess(kind == 0 ? UartAccess.Typed : register, value, kind < 6);

    private byte In(int register) => (byte)uart.Read((ushort)(0x3F8 + register), 1);

    private void Out(int register, byte value) => uart.Write((ushort)(0x3F8 + register), 1, value);

    private string Output()
    {
        byte[] buffer = new byte[256];
        return Encoding.ASCII.GetString(buffer, 0, console.TakeOutput(buffer));
    }

    /// <summary>What happens to a UART.</summary>
    /// <param name="Register">The register, or <see cref="Typed"/>.</param>
    /// <param name="Value">The value written or typed.</param>
    /// <param name="IsWrite">Whether it is written to.</param>
    private sealed record UartAccess(int Register, int Value, bool IsWrite)
    {
        /// <summary>Somebody types a character.</summary>
        public const int Typed = -1;
    }

    /// <summary>A UART, with implants on its ports or without.</summary>
    private sealed class Twin
    {
        private const ushort Port = 0x3F8;

        private readonly SerialConsole console = new();
        private readonly DevicePage page = new();
        private readonly Uart16550 uart;
        private readonly RingProducer vcpu;

        public Twin(bool offers)
        {
            uart = new Uart16550(Port, console, console, level => Line = level);
            console.InputArrived = uart.ReceiveInput;
            vcpu = new RingProducer(page);
            if (offers)
            {
                uart.Offer(page);
                console.OutputWanted = uart.PutOutTransmitted;
            }
        }

        public bool Line { get; private set; }

        public bool TakesBytes => page[DevicePageField.TransmitPort] == Port;

        public string Text
        {
            get
            {
                byte[] buffer = new byte[4096];
                return Encoding.ASCII.GetString(buffer, 0, console.TakeOutput(buffer));
            }
        }

        public int Do(UartAccess access)
        {
            if (access.Register == UartAccess.Typed)
            {
                return console.PutInput([(byte)access.Value]);
            }

            ushort port = (ushort)(Port + access.Register);
            if (access.IsWrite)
            {
                if (!vcpu.TryOut(port, (byte)access.Value))
                {
                    uart.Write(port, 1, (uint)access.Value);
                }

                return 0;
            }

            return vcpu.TryIn(port, out byte value) ? value : (int)uart.Read(port, 1);
        }

        public void Write(int register, byte value) => uart.Write((ushort)(Port + register), 1, value);

        public byte Read(int register) => (byte)uart.Read((ushort)(Port + register), 1);

        public bool Waits() => console.WaitForOutput(TimeSpan.FromSeconds(10));

        public void End() => uart.EndOffer();
    }
}
