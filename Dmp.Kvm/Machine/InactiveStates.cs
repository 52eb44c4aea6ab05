using System.Diagnostics;
using Dmp.Kvm.Devices;

namespace Dmp.Kvm.Machine;

/// <summary>Why a vCPU does not wait any longer.</summary>
internal enum InactiveEnd
{
    /// <summary>What it waited for has come.</summary>
    Awake,

    /// <summary>The machine ends.</summary>
    Stop,

    /// <summary>A pause was requested.</summary>
    Pause,

    /// <summary>It waits for something that nobody can send any more.</summary>
    Never,
}

/// <summary>
/// The activity states of a vCPU in which nothing of the guest runs on it: HLT and wait-for-SIPI (Intel SDM vol. 3, 26.4.2). It sleeps until
/// a kick, and uses no CPU. The vCPU's thread.
/// </summary>
internal sealed class InactiveStates(SharedMachine machine, int index, VcpuDoorbell doorbell)
{
    private readonly Chipset chipset = machine.Chipset;
    private readonly LocalApic apic = machine.Chipset.LocalApics[index];

    private long slept;

    /// <summary>Stopwatch ticks slept since the last call.</summary>
    internal long TakeSlept()
    {
        long ticks = slept;
        slept = 0;
        return ticks;
    }

    /// <summary>INIT came, or no SIPI yet: waits for one.</summary>
    /// <param name="vector">The SIPI's vector, when it has come.</param>
    internal InactiveEnd WaitForStartUp(out byte vector)
    {
        while (true)
        {
            doorbell.BeforeLook();
            _ = apic.TakeInit();
            if (apic.TryTakeStartUp(out vector))
            {
                return InactiveEnd.Awake;
            }

            if (Interruption() is { } end)
            {
                return end;
            }

            Sleep();
        }
    }

    /// <summary>HLT: waits for an interrupt, or for what else ends a halt.</summary>
    /// <param name="interruptFlag">RFLAGS.IF.</param>
    /// <param name="nmiBlocked">Whether NMIs are held off.</param>
    internal InactiveEnd Halt(bool interruptFlag, bool nmiBlocked)
    {
        doorbell.Wakes.Halt(machine.Clock.Nanoseconds);
        InactiveEnd end = WaitForInterrupt(interruptFlag, nmiBlocked);
        doorbell.Wakes.Run(machine.Clock.Nanoseconds);
        return end;
    }

    private InactiveEnd WaitForInterrupt(bool interruptFlag, bool nmiBlocked)
    {
        while (true)
        {
            doorbell.BeforeLook();
            if (chipset.TryEndHalt(index, interruptFlag, nmiBlocked))
            {
                return InactiveEnd.Awake;
            }

            if (Interruption() is { } end)
            {
                return end;
            }

            if (interruptFlag)
            {
                Sleep();
                continue;
            }

            if (NobodyCanWakeUs(machine.Control.NoteDeadHalt(index, halted: true)))
            {
                return InactiveEnd.Never;
            }

            Sleep();
            _ = machine.Control.NoteDeadHalt(index, halted: false);
        }
    }

    private InactiveEnd? Interruption() => machine.Control.Stop != null ? InactiveEnd.Stop
        : doorbell.PauseIsRequested ? InactiveEnd.Pause
        : null;

    private void Sleep()
    {
        long before = Stopwatch.GetTimestamp();
        doorbell.Wait(chipset.NextDeadline(index));
        slept += Stopwatch.GetTimestamp() - before;
        chipset.RunDue(index, machine.Clock.Nanoseconds);
    }

    /// <summary>With interrupts off only an NMI or INIT ends a halt, and only another CPU that runs sends one.</summary>
    /// <param name="halted">The vCPUs that are halted like that.</param>
    private bool NobodyCanWakeUs(uint halted)
    {
        for (int other = 0; other < chipset.LocalApics.Count; other++)
        {
            LocalApic there = chipset.LocalApics[other];
            bool stays = there.IsWaitingForStartUp || ((halted & (1u << other)) != 0 && !there.HasNmi && !there.HasWakeUp);
            if (!stays || there.HasInit)
            {
                return false;
            }
        }

        return true;
    }
}
