using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Monitor;
using Iced.Intel;

namespace Dmp.Kvm.Specs.Monitor;

public sealed class ShadowProgramSpecs : IDisposable
{
    private const int Vcpu = 1;
    private const int Slots = MachineLayout.ShadowTablesPerVcpu * Paging.EntriesPerTable;

    private readonly MappedMemory region = MappedMemory.Create("dmp-spec", MachineLayout.MonitorSize(2));
    private int programs;
    private int reloads;

    public void Dispose() => region.Dispose();

    [Theory(DisplayName = "Exactly the given slots are cleared, in as many programs as it takes")]
    [InlineData(1, 1, false, 1)]
    [InlineData(3, 1, true, 1)]
    [InlineData(512, 1, true, 1)]
    [InlineData(5000, 2, true, 2)]
    [InlineData(9000, 3, false, 4)]
    public void Clear(int count, int stride, bool reload, int expectedPrograms)
    {
        ShadowProgram program = new(region, Vcpu, reload, Execute);
        int[] slots = [.. Enumerable.Range(0, count).Select(index => 1000 + (index * stride))];
        for (int slot = 990; slot <= slots[^1] + 10; slot++)
        {
            program.Set(slot, (ulong)slot);
        }

        new Random(count).Shuffle(slots);
        program.Clear(slots);
        HashSet<int> cleared = [.. slots];
        for (int slot = 990; slot <= slots.Max() + 10; slot++)
        {
            Assert.Equal(cleared.Contains(slot) ? 0UL : (ulong)slot, program.Get(slot));
        }

        Assert.Equal(expectedPrograms, programs);
        Assert.Equal(reload ? programs : 0, reloads);
    }

    [Fact(DisplayName = "The last slot is the pool's last word; nothing to clear runs nothing")]
    public void Bounds()
    {
        ShadowProgram program = new(region, Vcpu, reloadCr3: false, Execute);
        program.Set(Slots - 1, 7);
        Assert.Equal(7UL, region.Word(region.Size - 8));
        program.Clear([]);
        Assert.Equal(0, programs);
        program.Clear([Slots - 1]);
        Assert.Equal(0UL, region.Word(region.Size - 8));
        Assert.Throws<ArgumentOutOfRangeException>(() => program.Get(Slots));
    }

    private void Execute(ulong address)
    {
        programs++;
        ulong offset = address - MachineLayout.MonitorBase;
        byte[] code = region.Slice(offset, MachineLayout.ShadowProgramSize).ToArray();
        Decoder decoder = Decoder.Create(64, code, address);
        ulong rdi = 0;
        ulong rax = ulong.MaxValue;
        uint ecx = 0;
        while (true)
        {
            Instruction instruction = decoder.Decode();
            switch (instruction.Code)
            {
                case Code.Xor_rm32_r32 or Code.Xor_r32_rm32:
                    rax = 0;
                    break;
                case Code.Mov_r64_imm64:
                    Assert.Equal(Register.RDI, instruction.Op0Register);
                    rdi = instruction.Immediate64;
                    break;
                case Code.Mov_r32_imm32:
                    Assert.Equal(Register.ECX, instruction.Op0Register);
                    ecx = instruction.Immediate32;
                    break;
                case Code.Stosq_m64_RAX:
                    for (uint left = instruction.HasRepPrefix ? ecx : 1; left > 0; left--, rdi += 8)
                    {
                        region.Word(rdi - MachineLayout.MonitorBase) = rax;
                    }

                    break;
                case Code.Mov_r64_cr:
                    break;
                case Code.Mov_cr_r64:
                    reloads++;
                    break;
                case Code.Out_imm8_AL:
                    Assert.Equal(MachineLayout.ShadowProgramDonePort, instruction.Immediate8);
                    return;
                default:
                    Assert.Fail($"{instruction} is not of a shadow program");
                    return;
            }
        }
    }
}
