using System.Diagnostics;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Machine;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Machine;

/// <summary>Running, pausing, and what it costs.</summary>
[Collection(KvmMachineCollection.Name)]
public class RunningSpecs
{
    [SkippableFact(DisplayName = "A write to the debug-exit port ends the machine with its value")]
    public void DebugExit()
    {
        using VirtualMachine machine = TinyKernel.Load(a => a.DebugExit(42));

        Assert.Equal(new VcpuStop.DebugExit(42), machine.Vcpus[0].Run());
        Assert.Equal(new VcpuStop.DebugExit(42), machine.Vcpus[0].Run());
    }

    [SkippableFact(DisplayName = "A pause that is asked for before Run ends it at once, and only it")]
    public void PauseBeforeRun()
    {
        using VirtualMachine machine = TinyKernel.Load(a => a.PowerOff());
        machine.Vcpus[0].RequestPause();
        machine.Vcpus[0].RequestPause();

        Assert.IsType<VcpuStop.Paused>(machine.Vcpus[0].Run());
        Assert.Equal(TinyKernel.Entry, machine.Registers().Rip);
        Assert.IsType<VcpuStop.PoweredOff>(machine.Vcpus[0].Run());
    }

    [SkippableFact(DisplayName = "A guest that only jumps to itself can be paused, and stands where it stood")]
    public async Task PauseTightLoop()
    {
        ulong spin = TinyKernel.Entry + (ulong)TinyKernel.Assemble(Prologue).Length;
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            Prologue(a);
            Label self = a.CreateLabel("self");
            a.Label(ref self);
            a.jmp(self);
            a.DebugExit(7);
        });
        for (int round = 0; round < 20; round++)
        {
            Task<VcpuStop> run = Start(machine);
            _ = machine.AwaitMore(TinyKernel.Data, than: 0);
            machine.Vcpus[0].RequestPause();

            Assert.IsType<VcpuStop.Paused>(await Within(run));
            if (machine.Registers().Rip == spin)
            {
                continue;
            }

            // Only before the guest has come to its loop it may stand elsewhere.
            Assert.InRange(machine.Registers().Rip, TinyKernel.Entry, spin);
            Assert.Equal(0, round);
        }

        machine.InternalVcpus[0].Registers.Regs.Rip = spin + 2;
        Assert.Equal(new VcpuStop.DebugExit(7), await Within(Start(machine)));

        static void Prologue(Assembler a)
        {
            a.mov(rbx, TinyKernel.Data);
            a.inc(__qword_ptr[rbx]);
        }
    }

    [SkippableFact(DisplayName = "A paused guest does nothing, and then goes on with nothing lost")]
    public async Task PauseAndContinue()
    {
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            Label loop = a.CreateLabel("loop");
            a.mov(rbx, TinyKernel.Data);
            a.Label(ref loop);
            a.inc(r8);
            a.mov(__qword_ptr[rbx], r8);
            a.cmp(__qword_ptr[rbx + 8], 0);
            a.je(loop);
            a.DebugExit(9);
        });
        ulong seen = 0;
        for (int round = 0; round < 50; round++)
        {
            Task<VcpuStop> run = Start(machine);
            seen = machine.AwaitMore(TinyKernel.Data, seen);
            machine.Vcpus[0].RequestPause();

            Assert.IsType<VcpuStop.Paused>(await Within(run));
            ulong stopped = machine.Registers().R8;
            Assert.InRange(stopped - machine.Word(TinyKernel.Data), 0UL, 1UL);
            seen = stopped;
        }

        machine.Word(TinyKernel.Data + 8) = 1;
        Assert.Equal(new VcpuStop.DebugExit(9), await Within(Start(machine)));
        Assert.Equal(machine.Registers().R8, machine.Word(TinyKernel.Data));
    }

    [SkippableFact(DisplayName = "A guest that waits for an interrupt can be paused, and waits on")]
    public async Task PauseHalt()
    {
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            Label forever = a.CreateLabel("forever");
            a.mov(rbx, TinyKernel.Data);
            a.inc(__qword_ptr[rbx]);
            a.Label(ref forever);
            a.sti();
            a.hlt();
            a.jmp(forever);
        });
        TimeSpan before = Process.GetCurrentProcess().TotalProcessorTime;
        for (int round = 0; round < 3; round++)
        {
            Task<VcpuStop> run = Start(machine);
            _ = machine.AwaitMore(TinyKernel.Data, than: 0);
            machine.Vcpus[0].RequestPause();

            Assert.IsType<VcpuStop.Paused>(await Within(run));
        }

        Assert.InRange(Process.GetCurrentProcess().TotalProcessorTime - before, TimeSpan.Zero, TimeSpan.FromSeconds(3));
    }

    [SkippableFact(DisplayName = "From exit to entry nothing is allocated")]
    public void NoAllocation()
    {
        const int Warm = 20_000;
        const int Measured = 30_000;
        const uint LocalApicVersion = 0xFEE00030;
        using VirtualMachine machine = TinyKernel.Load(a =>
        {
            Label loop = a.CreateLabel("loop");
            a.mov(rbx, TinyKernel.Data);
            a.mov(edi, LocalApicVersion);
            a.Label(ref loop);
            a.cli();
            a.pushfq();
            a.popfq();
            a.mov(ecx, 0xC0000080); // EFER
            a.rdmsr();
            a.mov(dx, 0x3FD); // line status
            a.@in(al, dx);
            a.mov(dx, 0x1234); // nobody's
            a.@in(al, dx);
            a.mov(rax, cr3);
            a.mov(cr3, rax);
            a.invlpg(__byte_ptr[rbx]);
            a.inc(__qword_ptr[rbx]);
            a.mov(eax, __dword_ptr[rdi]);
            a.mov(eax, cs);
            a.mov(eax, 0x40000000);
            a.push(rbx);
            a.cpuid();
            a.pop(rbx);
            a.sti();
            a.jmp(loop);
        });
        Vcpu vcpu = machine.InternalVcpus[0];
        int emulations = 0;
        long bytesBefore = 0;
        long bytes = -1;
        long exitsBefore = 0;
        vcpu.BeforeEmulation = () =>
        {
            // On the vCPU's own thread, in the middle of Run.
            switch (++emulations)
            {
                case Warm:
                    exitsBefore = vcpu.Exits.Total();
                    bytesBefore = GC.GetAllocatedBytesForCurrentThread();
                    break;
                case Warm + Measured:
                    bytes = GC.GetAllocatedBytesForCurrentThread() - bytesBefore;
                    vcpu.RequestPause();
                    break;
            }
        };

        Assert.IsType<VcpuStop.Paused>(vcpu.Run());

        Assert.Equal(0, bytes);
        Assert.InRange(vcpu.Exits.Total() - exitsBefore, Measured, long.MaxValue);
        foreach (ExitKind kind in new[] { ExitKind.Silent, ExitKind.Privileged, ExitKind.Io, ExitKind.HiddenFault })
        {
            Assert.InRange(vcpu.Exits.Total(kind), 1000, long.MaxValue);
        }
    }

    private static Task<VcpuStop> Start(VirtualMachine machine) =>
        Task.Factory.StartNew(machine.Vcpus[0].Run, CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);

    private static Task<VcpuStop> Within(Task<VcpuStop> run) => run.WaitAsync(TimeSpan.FromSeconds(30));
}
