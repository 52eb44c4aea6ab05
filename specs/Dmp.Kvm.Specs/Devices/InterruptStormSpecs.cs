using Dmp.Kvm.Devices;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Specs.Devices;

/// <summary>
/// Several vCPU threads and device threads on one set of interrupt controllers, as a machine runs them: each vCPU looks, enters the guest,
/// is kicked or exits; the guest sends IPIs of all kinds, reroutes pins, and ends its interrupts with and without an exit.
/// </summary>
public class InterruptStormSpecs
{
    [Theory(DisplayName = "No interrupt is lost, none comes twice, and nobody waits for ever, whatever all vCPUs and devices do at once")]
    [InlineData(1, 2)]
    [InlineData(2, 4)]
    [InlineData(3, 4)]
    [InlineData(4, 7)]
    public void Storm(int seed, int vcpus) => new InterruptStorm(seed, vcpus).Run();

    /// <summary>Like the signal that kicks a thread: it is pending or not.</summary>
    private sealed class PendingSignal
    {
        private readonly object gate = new();
        private volatile bool pending;

        internal bool IsPending => pending;

        internal void Send()
        {
            lock (gate)
            {
                pending = true;
                System.Threading.Monitor.Pulse(gate);
            }
        }

        internal void Consume() => pending = false;

        internal void Wait(TimeSpan patience)
        {
            lock (gate)
            {
                if (!pending)
                {
                    _ = System.Threading.Monitor.Wait(gate, patience);
                }
            }
        }
    }

    private sealed class InterruptStorm : IMachineControl
    {
        private const int Sends = 2_000;
        private const int Pulses = 1_000;
        private const byte Physical = 0x41, Logical = 0x52, Lowest = 0x63, Others = 0x74, Everybody = 0x85, Self = 0x96, FirstPin = 0xA1;
        private const uint Eoi = 0x80B, Svr = 0x80F, Icr = 0x830, SelfIpi = 0x83F;
        private const uint LogicalDestination = 1 << 11, LowestPriority = 1 << 8, NmiMode = 4 << 8, AllOthers = 3 << 18, All = 2 << 18;
        private const ulong LevelTriggered = 1 << 15, Masked = 1 << 16;

        // Two pins by edges, two by levels; each has a device behind it.
        private static readonly int[] Pins = [4, 5, 10, 11];
        private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

        private readonly StormCpu[] cpus;
        private readonly Chipset chipset;
        private readonly Lock guestLock = new();
        private readonly int seed;
        private readonly int[] served = new int[Pins.Length];
        private readonly int[] undone = new int[byte.MaxValue + 1];
        private volatile bool over;
        private volatile string? trouble;

        internal InterruptStorm(int seed, int vcpus)
        {
            this.seed = seed;
            chipset = new Chipset(vcpus, new VirtualClock(), this, new SerialConsole(), 1 << 20, null);
            cpus = [.. Enumerable.Range(0, vcpus).Select(index => new StormCpu(this, index))];
            foreach (StormCpu cpu in cpus)
            {
                cpu.Start();
            }

            for (int device = 0; device < Pins.Length; device++)
            {
                Redirect(device, 0, masked: false);
            }
        }

        public void PowerOff() => throw new InvalidOperationException();

        public void Reset(string how) => throw new InvalidOperationException(how);

        public void DebugExit(uint value) => throw new InvalidOperationException();

        public void Kick(int vcpu) => cpus?[vcpu].Kick();

        public void KickAt(int vcpu, long nanoseconds)
        {
        }

        internal void Run()
        {
            Thread[] runners = [.. cpus.Select(cpu => new Thread(cpu.Run))];
            Thread[] devices = [.. Enumerable.Range(0, Pins.Length).Select(device => new Thread(() => Drive(device)))];
            foreach (Thread thread in runners.Concat(devices))
            {
                thread.Start();
            }

            bool ended = devices.All(device => device.Join(Patience)) && SpinWait.SpinUntil(IsDone, Patience);
            string state = string.Join("; ", cpus.Select(cpu => cpu.Describe()));
            over = true;
            foreach (StormCpu cpu in cpus)
            {
                cpu.Kick();
            }

            Assert.True(runners.All(runner => runner.Join(Patience)), "a vCPU does not stop: " + state);
            Assert.Null(trouble);
            Assert.True(ended, $"an interrupt was lost: pins {string.Join(' ', served)}, lowest {undone[Lowest]}; {state}");

            // A device raises its line again only when it was served: each pulse was served once.
            Assert.All(served, count => Assert.Equal(Pulses, count));
            Assert.All(cpus, cpu => cpu.Check());
        }

        private bool IsDone() => trouble is not null || (undone[Lowest] == 0 && cpus.All(cpu => cpu.IsDone));

        private void Drive(int device)
        {
            int pin = Pins[device];
            for (int pulse = 0; pulse < Pulses && trouble is null; pulse++)
            {
                chipset.IoApic.SetPin(pin, true);
                if (!IsLevel(device))
                {
                    chipset.IoApic.SetPin(pin, false);
                }

                int before = pulse;
                if (!SpinWait.SpinUntil(() => Volatile.Read(ref served[device]) != before, Patience))
                {
                    trouble ??= $"pin {pin} was not served, pulse {pulse}";
                }
            }
        }

        private static bool IsLevel(int device) => device >= Pins.Length / 2;

        // The guest serializes its accesses to the I/O APIC, whose registers are behind an index.
        private void Redirect(int device, int vcpu, bool masked)
        {
            ulong entry = (FirstPin + ((ulong)device << 4)) | ((ulong)vcpu << 56) | (IsLevel(device) ? LevelTriggered : 0);
            lock (guestLock)
            {
                int register = 0x10 + (2 * Pins[device]);
                if (masked)
                {
                    Write(register, (uint)(entry | Masked));
                }

                Write(register + 1, (uint)(entry >> 32));
                Write(register, (uint)entry);
            }

            void Write(int at, uint value)
            {
                chipset.Mmio.Write(DeviceLayout.IoApicBase, 4, (ulong)at);
                chipset.Mmio.Write(DeviceLayout.IoApicBase + 0x10, 4, value);
            }
        }

        /// <summary>One vCPU: its thread, and the guest that runs on it.</summary>
        private sealed class StormCpu
        {
            private readonly InterruptStorm storm;
            private readonly int index;
            private readonly LocalApic apic;
            private readonly KickGate gate = new();
            private readonly PendingSignal signal = new();
            private readonly VcpuPage page = new();
            private readonly ImplantEndOfInterrupt ends;
            private readonly Random random;
            private readonly Stack<byte> inService = new();

            // By vector: what senders have asked of this vCPU and it has not done yet.
            private readonly int[] undone = new int[byte.MaxValue + 1];
            private readonly int[] posted = new int[byte.MaxValue + 1];
            private readonly int[] taken = new int[byte.MaxValue + 1];
            private int sends;

            internal StormCpu(InterruptStorm storm, int index)
            {
                this.storm = storm;
                this.index = index;
                apic = storm.chipset.LocalApics[index];
                ends = new ImplantEndOfInterrupt(apic, page);
                random = new Random((storm.seed * 100) + index);
            }

            private enum Exit
            {
                Kicked,
                EndOfInterrupt,
                Send,
            }

            internal bool IsDone => Volatile.Read(ref sends) == Sends && undone.All(count => count == 0);

            internal void Start()
            {
                if (index != 0)
                {
                    Assert.True(apic.Accept(new InterruptMessage((uint)index, false, DeliveryMode.StartUp, 0, false)));
                    Assert.True(apic.TryTakeStartUp(out _));
                }

                Assert.True(apic.TryWriteMsr(Svr, 0x1FF));
            }

            internal void Kick()
            {
                if (gate.NeedsSignal())
                {
                    signal.Send();
                }
            }

            internal void Run()
            {
                apic.BindToCurrentThread();
                try
                {
                    Loop();
                }
                catch (Exception error)
                {
                    storm.trouble = error.ToString();
                }
            }

            internal string Describe() =>
                $"vCPU {index}: sent {sends}, in service {inService.Count}, pending {apic.HasPending}, undone " +
                string.Join(' ', undone.Select((count, vector) => (count, vector)).Where(one => one.count != 0).Select(one => $"{one.vector:x}"));

            // Requests may coalesce; more are never taken than were made.
            internal void Check()
            {
                Assert.Empty(inService);
                foreach (byte vector in (byte[])[2, Physical, Logical, Others, Everybody, Self])
                {
                    Assert.InRange(taken[vector], 1, posted[vector]);
                }
            }

            private void Loop()
            {
                while (true)
                {
                    gate.Open();
                    if (storm.over)
                    {
                        return;
                    }

                    if (apic.TakeNmi())
                    {
                        Serve(2);
                    }

                    if (storm.chipset.TryAcknowledge(index, out byte vector))
                    {
                        inService.Push(vector);
                        Serve(vector);
                    }

                    ends.BeforeEntry();
                    Exit exit = Guest();
                    ends.AfterExit();
                    gate.Close();
                    signal.Consume();
                    Handle(exit);
                }
            }

            // Until it exits. What it does in between is what it can do without an exit.
            private Exit Guest()
            {
                while (!signal.IsPending)
                {
                    if (inService.Count != 0 && random.Next(3) != 0)
                    {
                        ref ulong permission = ref page[VcpuPageField.SimpleEndOfInterrupt];
                        if (permission == 0)
                        {
                            return Exit.EndOfInterrupt;
                        }

                        permission = 0;
                        _ = inService.Pop();
                    }
                    else if (sends < Sends)
                    {
                        return Exit.Send;
                    }
                    else if (inService.Count == 0)
                    {
                        signal.Wait(2 * Patience); // A kick that is lost is missed by somebody first.
                        return Exit.Kicked;
                    }
                }

                return Exit.Kicked;
            }

            private void Handle(Exit exit)
            {
                if (exit == Exit.EndOfInterrupt)
                {
                    _ = inService.Pop();
                    Assert.True(apic.TryWriteMsr(Eoi, 0));
                }
                else if (exit == Exit.Send)
                {
                    Send();
                    Volatile.Write(ref sends, sends + 1);
                }
            }

            private void Serve(byte vector)
            {
                taken[vector]++;
                if (vector >= FirstPin)
                {
                    int device = (vector - FirstPin) >> 4;
                    if (IsLevel(device))
                    {
                        storm.chipset.IoApic.SetPin(Pins[device], false);
                    }

                    Interlocked.Increment(ref storm.served[device]);
                    return;
                }

                int[] asked = vector == Lowest ? storm.undone : undone;
                Interlocked.Exchange(ref asked[vector], 0);
            }

            private void Send()
            {
                int count = storm.cpus.Length;
                int target = random.Next(count);
                switch (random.Next(8))
                {
                    case 0:
                        storm.cpus[target].Ask(Physical);
                        Command((uint)target, Physical);
                        break;
                    case 1:
                        uint mask = (uint)random.Next(1, 1 << count);
                        AskAll(Logical, cpu => (mask & (1u << cpu)) != 0);
                        Command(mask, Logical | LogicalDestination);
                        break;
                    case 2:
                        Interlocked.Increment(ref storm.undone[Lowest]);
                        Command((1u << count) - 1, Lowest | LogicalDestination | LowestPriority);
                        break;
                    case 3:
                        AskAll(Others, cpu => cpu != index);
                        Command(0, Others | AllOthers);
                        break;
                    case 4:
                        AskAll(Everybody, _ => true);
                        Command(0, Everybody | All);
                        break;
                    case 5:
                        Ask(Self);
                        Assert.True(apic.TryWriteMsr(SelfIpi, Self));
                        break;
                    case 6:
                        storm.cpus[target].Ask(2);
                        Command((uint)target, NmiMode);
                        break;
                    default:
                        int device = random.Next(Pins.Length);
                        storm.Redirect(device, target, masked: IsLevel(device) && random.Next(2) == 0);
                        break;
                }
            }

            private void AskAll(byte vector, Func<int, bool> chosen)
            {
                foreach (StormCpu cpu in storm.cpus.Where(cpu => chosen(cpu.index)))
                {
                    cpu.Ask(vector);
                }
            }

            private void Ask(byte vector)
            {
                Interlocked.Increment(ref posted[vector]);
                Interlocked.Increment(ref undone[vector]);
            }

            private void Command(uint destination, uint low) =>
                Assert.True(apic.TryWriteMsr(Icr, ((ulong)destination << 32) | low));
        }
    }
}
