using Dmp.Kvm.Devices;

namespace Dmp.Kvm.Specs.Devices;

public class SmallDeviceSpecs
{
    private readonly Board board = new(debugExitPort: 0xF4);

    [Fact(DisplayName = "The RTC tells the wall clock in BCD, 24 hours, and in binary when asked")]
    public void Rtc()
    {
        Assert.Equal([0x07, 0x58, 0x23, 0x06, 0x29, 0x11, 0x24, 0x20], Cmos(0, 2, 4, 6, 7, 8, 9, 0x32));
        board.Out(0x70, 0x0B);
        board.Out(0x71, 0x06);
        Assert.Equal([7, 58, 23], Cmos(0, 2, 4));
        board.Out(0x70, 0x0B);
        board.Out(0x71, 0x00);
        Assert.Equal([0x80 | 0x11], Cmos(4));
        Assert.Equal([0x26, 0x80], Cmos(0x0A, 0x0D));
    }

    [Fact(DisplayName = "An update is in progress in the last 244 microseconds of a second")]
    public void Update_in_progress()
    {
        board.Clock.UtcNow = board.Clock.UtcNow.AddMicroseconds(999_755);
        Assert.Equal([0x26], Cmos(0x0A));
        board.Clock.UtcNow = board.Clock.UtcNow.AddMicroseconds(2);
        Assert.Equal([0xA6], Cmos(0x0A));
    }

    [Fact(DisplayName = "The battery-backed RAM knows the memory size")]
    public void Memory_size()
    {
        Assert.Equal([0x80, 0x02], Cmos(0x15, 0x16));
        Assert.Equal([0x00, 0x1F], Cmos(0x34, 0x35)); // (512 - 16) MiB in units of 64 KiB
    }

    [Fact(DisplayName = "The 8042 never makes the reboot path wait, never has data to end for, and resets")]
    public void I8042()
    {
        Assert.Equal(0xFD, board.In(0x64));
        Assert.Equal(0xFF, board.In(0x60));
        board.Out(0x64, 0xFE);
        board.Out(0x64, 0xFF);
        board.Out(0x64, 0xD1);
        board.Out(0x60, 0xFE);
        Assert.Equal(["i8042 pulse", "i8042 output port"], board.Machine.Events);
    }

    [Fact(DisplayName = "Port 0xCF9 resets when bit 2 rises; a dword to 0xCF8 does not reach it")]
    public void Reset_control()
    {
        board.Chipset.Ports.Write(0xCF8, 4, 0x8000_0600);
        Assert.Equal(0xFFFF_FFFFu, board.Chipset.Ports.Read(0xCF8, 4));
        Assert.Equal(0xFFFFu, board.Chipset.Ports.Read(0xCFE, 2));
        board.Out(0xCF9, 0x02);
        Assert.Empty(board.Machine.Events);
        board.Out(0xCF9, 0x06);
        Assert.Equal(["port 0xcf9"], board.Machine.Events);
        Assert.Equal(0x06, board.In(0xCF9));
    }

    [Theory(DisplayName = "ACPI soft-off switches off, written as a word or as the high byte; other sleep types do not")]
    [InlineData(0x604, 2, 0x3401, true)]
    [InlineData(0x605, 1, 0x34, true)]
    [InlineData(0x604, 2, 0x1401, false)]
    [InlineData(0x604, 2, 0x3001, false)]
    public void Soft_off(ushort port, int size, uint value, bool off)
    {
        board.Chipset.Ports.Write(port, size, value);
        Assert.Equal(off ? ["power off"] : [], board.Machine.Events);
        Assert.Equal(1u, board.Chipset.Ports.Read(0x604, 2) & 0x2001);
    }

    [Fact(DisplayName = "The PM timer counts 3.579545 MHz in 32 bits")]
    public void Pm_timer()
    {
        board.Clock.Nanoseconds = 2_000_000_000;
        Assert.Equal(7_159_090u, board.Chipset.Ports.Read(0x608, 4));
        board.Clock.Nanoseconds = 1_200_000_000_000;
        Assert.Equal(unchecked((uint)(3_579_545L * 1200)), board.Chipset.Ports.Read(0x608, 4));
    }

    [Fact(DisplayName = "The debug-exit port takes the whole value; delay ports take anything")]
    public void Debug_exit()
    {
        board.Chipset.Ports.Write(0xF4, 4, 0x123);
        board.Out(0x80, 1);
        board.Out(0xED, 1);
        Assert.Equal(["debug exit 291"], board.Machine.Events);
        List<UnownedPort> unowned = [];
        board.Chipset.Ports.SnapshotUnowned(unowned);
        Assert.Empty(unowned);
    }

    private byte[] Cmos(params byte[] registers) => [.. registers.Select(register =>
    {
        board.Out(0x70, register);
        return board.In(0x71);
    })];
}
