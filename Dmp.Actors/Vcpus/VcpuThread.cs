using System.Diagnostics;
using Akka.Actor;
using Dmp.Actors.Quiesce;
using Dmp.Kvm.Machine;

namespace Dmp.Actors.Vcpus;

/// <summary>
/// The one thread that may call <see cref="IVcpu.Run"/>. It waits for an order, carries it out, and tells its actor what came of
/// it; it decides nothing. After <see cref="VcpuProtocol.ThreadEnded"/> it never touches the vCPU again, so that answer is as
/// good as a join.
/// </summary>
internal sealed class VcpuThread
{
    private readonly IVcpu vcpu;
    private readonly IActorRef owner;

    // A patch transaction is over in less than this, and waking a blocked thread would take as long again.
    private static readonly TimeSpan SpinTime = TimeSpan.FromMicroseconds(200);

    // Written under the lock; read without it while spinning, where a late look only costs another turn.
    private readonly object orders = new();
    private readonly StopClock? clock;
    private volatile bool runOrdered;
    private volatile bool endOrdered;

    public VcpuThread(IVcpu vcpu, IActorRef owner, StopClock? clock)
    {
        this.vcpu = vcpu;
        this.owner = owner;
        this.clock = clock;
    }

    public void Start()
    {
        // A background thread: one that is stuck in the kernel must not keep the process from reporting that and leaving.
        new Thread(Loop) { Name = $"vcpu-{vcpu.Index}", IsBackground = true }.Start();
    }

    public void RunGuest()
    {
        lock (orders)
        {
            runOrdered = true;
            Monitor.Pulse(orders);
        }
    }

    public void RequestPause() => vcpu.RequestPause();

    public void End()
    {
        lock (orders)
        {
            endOrdered = true;
            Monitor.Pulse(orders);
        }
    }

    private void Loop()
    {
        owner.Tell(new VcpuProtocol.ThreadReady());
        while (WaitForRun())
        {
            clock?.Resume(vcpu.Index);
            VcpuProtocol.IThreadEvent happened = RunOnce();
            clock?.Stop(vcpu.Index);
            owner.Tell(happened);
            SpinForOrder();
        }

        owner.Tell(new VcpuProtocol.ThreadEnded());
    }

    private void SpinForOrder()
    {
        long start = Stopwatch.GetTimestamp();
        while (!runOrdered && !endOrdered && Stopwatch.GetElapsedTime(start) < SpinTime)
        {
            // Gives way to whoever wants the core: with more vCPUs than cores that is one that has yet to stop, or the actors.
            Thread.Yield();
        }
    }

    private bool WaitForRun()
    {
        lock (orders)
        {
            while (!runOrdered && !endOrdered)
            {
                Monitor.Wait(orders);
            }

            runOrdered = false;
            return !endOrdered;
        }
    }

    private VcpuProtocol.IThreadEvent RunOnce()
    {
        try
        {
            return new VcpuProtocol.RunReturned(vcpu.Run());
        }
        catch (Exception failure)
        {
            // Whatever it is, it is our failure and not the guest's; the supervisor ends the machine with a report.
            return new VcpuProtocol.RunThrew(failure);
        }
    }
}
