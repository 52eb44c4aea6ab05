using Dmp.Kvm.Machine;

namespace Dmp.Kvm.Specs.Machine;

public class KickGateSpecs
{
    [Fact(DisplayName = "A kick costs no signal while an exit is handled, and one signal for all kicks once the vCPU may have looked")]
    public void Signals()
    {
        KickGate gate = new();
        Assert.False(gate.NeedsSignal());
        gate.Open();
        Assert.True(gate.NeedsSignal());
        Assert.False(gate.NeedsSignal());
        gate.Close();
        Assert.False(gate.NeedsSignal());
        gate.Open();
        Assert.True(gate.NeedsSignal());
    }

    [Fact(DisplayName = "Whatever is made known is seen at the next look, or there is a signal: nothing is slept through")]
    public void Nothing_is_lost()
    {
        const int Kickers = 3;
        const int Rounds = 100_000;
        KickGate gate = new();
        using SemaphoreSlim signal = new(0);
        int[] news = new int[Kickers];
        int[] seen = new int[Kickers];
        Thread[] kickers = [.. Enumerable.Range(0, Kickers).Select(kicker => new Thread(() =>
        {
            SpinWait wait = default;
            for (int round = 1; round <= Rounds; round++)
            {
                Interlocked.Exchange(ref news[kicker], round);
                if (gate.NeedsSignal())
                {
                    signal.Release();
                }

                // Only one in two waits for its answer, so that kicks come one by one and also in heaps.
                while (kicker % 2 == 0 && Volatile.Read(ref seen[kicker]) != round)
                {
                    wait.SpinOnce(sleep1Threshold: -1);
                }
            }
        }))];
        foreach (Thread kicker in kickers)
        {
            kicker.Start();
        }

        bool asleep = false;
        while (!asleep && seen.Any(round => round != Rounds))
        {
            gate.Open();
            for (int kicker = 0; kicker < Kickers; kicker++)
            {
                Volatile.Write(ref seen[kicker], Volatile.Read(ref news[kicker]));
            }

            // The last look needs no signal behind it.
            asleep = seen.Any(round => round != Rounds) && !signal.Wait(TimeSpan.FromSeconds(30));
            gate.Close();
        }

        Assert.False(asleep, "a kick was lost");
        foreach (Thread kicker in kickers)
        {
            kicker.Join();
        }
    }
}
