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

    [Fact(DisplayName = "A look and a kick at the same moment: what the look does not see has a signal")]
    public void Crossing()
    {
        const int Rounds = 50_000;
        const int Delays = 32;
        KickGate gate = new();
        int round = 0;
        int news = 0;
        int kicked = 0;
        bool signals = false;
        Thread kicker = new(() =>
        {
            SpinWait wait = default;
            for (int next = 1; next <= Rounds; next++)
            {
                while (Volatile.Read(ref round) != next)
                {
                    wait.SpinOnce(sleep1Threshold: -1);
                }

                Interlocked.Exchange(ref news, next);
                signals = gate.NeedsSignal();
                Volatile.Write(ref kicked, next);
            }
        });
        kicker.Start();
        List<int> lost = [];
        SpinWait idle = default;
        for (int next = 1; next <= Rounds; next++)
        {
            gate.Close();
            Volatile.Write(ref round, next);
            Thread.SpinWait(next % Delays);
            gate.Open();
            int seen = Volatile.Read(ref news);
            while (Volatile.Read(ref kicked) != next)
            {
                idle.SpinOnce(sleep1Threshold: -1);
            }

            if (seen != next && !signals)
            {
                lost.Add(next);
            }
        }

        kicker.Join();
        Assert.Empty(lost);
    }

    [Theory(DisplayName = "Whatever is made known is seen at the next look, or there is a signal: nothing is slept through")]
    [InlineData(1, 20_000)]
    [InlineData(3, 20_000)]
    public void Nothing_is_lost(int count, int rounds)
    {
        KickGate gate = new();
        using SemaphoreSlim signal = new(0);
        int[] news = new int[count];
        int[] seen = new int[count];
        Thread[] kickers = [.. Enumerable.Range(0, count).Select(kicker => new Thread(() =>
        {
            SpinWait wait = default;
            for (int round = 1; round <= rounds; round++)
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
        while (!asleep && seen.Any(round => round != rounds))
        {
            gate.Open();
            for (int kicker = 0; kicker < count; kicker++)
            {
                Volatile.Write(ref seen[kicker], Volatile.Read(ref news[kicker]));
            }

            // The last look needs no signal behind it.
            asleep = seen.Any(round => round != rounds) && !signal.Wait(TimeSpan.FromSeconds(30));
            gate.Close();
        }

        Assert.False(asleep, "a kick was lost");
        foreach (Thread kicker in kickers)
        {
            kicker.Join();
        }
    }
}
