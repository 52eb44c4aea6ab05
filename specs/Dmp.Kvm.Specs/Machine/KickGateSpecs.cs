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

    [Theory(DisplayName = "Whatever is made known is seen at the next look, or there is a signal: nothing is slept through")]
    [InlineData(1, 200_000)]
    [InlineData(3, 50_000)]
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
