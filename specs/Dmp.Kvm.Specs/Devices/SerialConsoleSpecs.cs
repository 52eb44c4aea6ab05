using Dmp.Kvm.Devices;

namespace Dmp.Kvm.Specs.Devices;

public class SerialConsoleSpecs
{
    [Fact(DisplayName = "A megabyte written while a reader waits arrives in order, nothing lost")]
    public async Task Nothing_is_lost()
    {
        const int Count = 1 << 20;
        SerialConsole console = new();
        Task<bool> reader = Task.Run(() =>
        {
            byte[] buffer = new byte[5000];
            int seen = 0;
            while (seen < Count)
            {
                if (!console.WaitForOutput(TimeSpan.FromSeconds(10)))
                {
                    return false;
                }

                int taken = console.TakeOutput(buffer);
                for (int i = 0; i < taken; i++, seen++)
                {
                    if (buffer[i] != (byte)(seen * 7 / 3))
                    {
                        return false;
                    }
                }
            }

            return true;
        });
        for (int i = 0; i < Count; i++)
        {
            console.Put((byte)(i * 7 / 3));
        }

        Assert.True(await reader);
    }

    [Fact(DisplayName = "Output is kept without a reader")]
    public void Kept_without_reader()
    {
        SerialConsole console = new();
        for (int i = 0; i < 300_000; i++)
        {
            console.Put((byte)i);
        }

        byte[] buffer = new byte[400_000];
        Assert.Equal(300_000, console.TakeOutput(buffer));
        Assert.All(Enumerable.Range(0, 300_000), i => Assert.Equal((byte)i, buffer[i]));
        Assert.False(console.WaitForOutput(TimeSpan.Zero));
    }

    [Fact(DisplayName = "Waiting ends with the time or with the first byte")]
    public async Task Waiting()
    {
        SerialConsole console = new();
        Assert.False(console.WaitForOutput(TimeSpan.FromMilliseconds(5)));
        Task<bool> reader = Task.Run(() => console.WaitForOutput(TimeSpan.FromSeconds(10)));
        console.Put(1);
        Assert.True(await reader);
    }

    [Fact(DisplayName = "A wait can be ended, also before it has begun, and only one")]
    public async Task Ended()
    {
        SerialConsole console = new();
        Task<bool> reader = Task.Run(() => console.WaitForOutput(Timeout.InfiniteTimeSpan));
        console.EndWait();
        Assert.False(await reader);
        console.EndWait();
        Assert.False(console.WaitForOutput(Timeout.InfiniteTimeSpan));
        console.Put(1);
        Assert.True(console.WaitForOutput(Timeout.InfiniteTimeSpan));
    }

    [Fact(DisplayName = "Output that nobody signals is found by the reader, however long there was none")]
    public void Unsignalled()
    {
        SerialConsole console = new();
        bool written = false;
        console.OutputWanted = () =>
        {
            if (written)
            {
                written = false;
                console.Put(1);
            }
        };
        for (int times = 0; times < 3; times++)
        {
            Assert.False(console.WaitForOutput(TimeSpan.FromMilliseconds(300)));
            written = true;
            Assert.True(console.WaitForOutput(Timeout.InfiniteTimeSpan));
            Assert.Equal(1, console.TakeOutput(new byte[10]));
        }
    }

    [Fact(DisplayName = "Input is accepted up to the queue's size and taken in order")]
    public void Input()
    {
        SerialConsole console = new();
        Assert.Equal(64 << 10, console.PutInput(new byte[100_000]));
        Assert.Equal(0, console.PutInput([1]));
        Assert.True(console.TryTake(out _));
        Assert.Equal(1, console.PutInput([1, 2]));
    }
}
