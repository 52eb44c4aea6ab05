using Dmp.Kvm.Locking;

namespace Dmp.Kvm.Devices;

/// <summary>
/// The 8254 interval timer (Intel 8254 data sheet) and system control port B, through which the guest gates and reads channel 2.
/// Channel 0 drives IRQ 0. A tick that was missed because the vCPU came late is dropped, not made up.
/// </summary>
public sealed class Pit8254 : IPortDevice, ISharedDevice
{
    private const int ChannelCount = 3;
    private const int ControlWordPort = 3;
    private const int SpeakerChannel = 2;

    // Control word: channel in bits 7..6, access in 5..4, mode in 3..1, BCD in 0.
    private const int ChannelShift = 6;
    private const int AccessShift = 4;
    private const int AccessMask = 3;
    private const int ModeShift = 1;
    private const int ModeMask = 7;

    // DRAM refresh toggles its bit of port B every 15 us; some delay loops count it.
    private const long RefreshNanoseconds = 15_085;

    private readonly IClock clock;
    private readonly Action<bool> interrupt;
    private readonly DeviceTimer timer;
    private readonly PitChannel[] channels;
    private SystemControlB portB;
    private long nextRise = TimerQueue.Never;

    /// <summary>Makes the timer.</summary>
    /// <param name="clock">The time.</param>
    /// <param name="timers">Queue of the vCPU that runs channel 0's interrupt.</param>
    /// <param name="interrupt">Drives IRQ 0, under <see cref="Gate"/>.</param>
    public Pit8254(IClock clock, TimerQueue timers, Action<bool> interrupt)
    {
        ArgumentNullException.ThrowIfNull(timers);
        this.clock = clock;
        this.interrupt = interrupt;
        timer = timers.Add(_ => Tick());
        channels = [new PitChannel(clock, gate: true), new PitChannel(clock, gate: true), new PitChannel(clock, gate: false)];
    }

    [Flags]
    private enum SystemControlB : byte
    {
        None = 0,
        TimerGate = 1 << 0,
        SpeakerData = 1 << 1,
        Refresh = 1 << 4,
        TimerOutput = 1 << 5,
        Writable = TimerGate | SpeakerData,
    }

    // Read-back command: the complement of what to latch, and the channels in bits 3..1.
    [Flags]
    private enum ReadBack : byte
    {
        None = 0,
        FirstChannel = 1 << 1,
        NoStatus = 1 << 4,
        NoCount = 1 << 5,
    }

    /// <inheritdoc/>
    public OrderedLock Gate { get; } = new(LockRank.Device);

    /// <inheritdoc/>
    public uint Read(ushort port, int size)
    {
        if (port == DeviceLayout.SystemControlB)
        {
            return (uint)(portB |
                (clock.Nanoseconds / RefreshNanoseconds % 2 != 0 ? SystemControlB.Refresh : SystemControlB.None) |
                (channels[SpeakerChannel].Output ? SystemControlB.TimerOutput : SystemControlB.None));
        }

        int register = port - DeviceLayout.Pit;
        return register == ControlWordPort ? byte.MaxValue : channels[register].Read();
    }

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        if (port == DeviceLayout.SystemControlB)
        {
            portB = (SystemControlB)value & SystemControlB.Writable;
            channels[SpeakerChannel].Gate = (portB & SystemControlB.TimerGate) != 0;
            return;
        }

        int register = port - DeviceLayout.Pit;
        if (register == ControlWordPort)
        {
            Control((byte)value);
        }
        else if (channels[register].Write((byte)value) && register == 0)
        {
            Restart();
        }
    }

    private void Control(byte word)
    {
        int selected = word >> ChannelShift;
        PitAccess access = (PitAccess)((word >> AccessShift) & AccessMask);
        if (selected == ChannelCount)
        {
            Latch((ReadBack)word);
        }
        else if (access == PitAccess.Latch)
        {
            channels[selected].LatchCount();
        }
        else
        {
            channels[selected].Control(access, (word >> ModeShift) & ModeMask, (word & 1) != 0);
            if (selected == 0)
            {
                Restart();
            }
        }
    }

    private void Latch(ReadBack command)
    {
        for (int i = 0; i < ChannelCount; i++)
        {
            if (((int)command & ((int)ReadBack.FirstChannel << i)) == 0)
            {
                continue;
            }

            if ((command & ReadBack.NoCount) == 0)
            {
                channels[i].LatchCount();
            }

            if ((command & ReadBack.NoStatus) == 0)
            {
                channels[i].LatchStatus();
            }
        }
    }

    private void Restart()
    {
        interrupt(channels[0].Output);
        AwaitRise();
    }

    private void AwaitRise()
    {
        nextRise = channels[0].NextRise();
        timer.Set(nextRise);
    }

    private void Tick()
    {
        using (Gate.Enter())
        {
            if (clock.Nanoseconds < nextRise)
            {
                return; // Set anew between the timer's end and here; the new time is in the queue already.
            }

            // OUT has been low since the last rise, if only for one tick; and it stays high, or the 8259A would see no request.
            interrupt(false);
            interrupt(true);
            AwaitRise();
        }
    }
}
