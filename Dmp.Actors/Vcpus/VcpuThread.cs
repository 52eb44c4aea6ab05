using Akka.Actor;
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

    private readonly object orders = new();
    private bool runOrdered;
    private bool endOrdered;

    public VcpuThread(IVcpu vcpu, IActorRef owner)
    {
        this.vcpu = vcpu;
        this.owner = owner;
    }

    public void Start()
    {
        // A background thread: one that is stuck in the kernel must not keep the process from reporting that and leaving.
        new Thread(Loop) { Name = $"vcpu-{vcpu.Index}", IsBackground = true }.Start();
    }

    public void RunGuest() => Order(ref runOrdered);

    public void RequestPause() => vcpu.RequestPause();

    public void End() => Order(ref endOrdered);

    private void Order(ref bool order)
    {
        lock (orders)
        {
            order = true;
            Monitor.Pulse(orders);
        }
    }

    private void Loop()
    {
        owner.Tell(new VcpuProtocol.ThreadReady());
        while (WaitForRun())
        {
            owner.Tell(RunOnce());
        }

        owner.Tell(new VcpuProtocol.ThreadEnded());
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
