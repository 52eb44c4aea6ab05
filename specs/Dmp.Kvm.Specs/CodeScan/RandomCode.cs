using Iced.Intel;

namespace Dmp.Kvm.Specs.CodeScan;

/// <summary>Instructions of a kernel at random, many of them silent and many with operands that look like silent ones.</summary>
internal static class RandomCode
{
    internal static void Emit(Assembler a, Random random)
    {
        AssemblerRegister64 register = random.Next(2) == 0 ? AssemblerRegisters.rax : AssemblerRegisters.r13;
        switch (random.Next(14))
        {
            case 0: a.pushfq(); break;
            case 1: a.popfq(); break;
            case 2: a.iretq(); break;
            case 3: a.cpuid(); break;
            case 4: a.mov(register, AssemblerRegisters.cs); break;
            case 5: a.mov(register, AssemblerRegisters.ss); break;
            case 6: a.mov(register, AssemblerRegisters.ds); break;
            case 7: a.mov(register, random.NextInt64()); break;
            case 8: a.mov(AssemblerRegisters.ecx, random.Next()); break;
            case 9: a.add(register, random.Next()); break;
            case 10: a.mov(register, AssemblerRegisters.__[AssemblerRegisters.rdi + random.Next()]); break;
            case 11: a.push(register); break;
            case 12: a.sidt(AssemblerRegisters.__[AssemblerRegisters.rsp]); break;
            default: a.nop(); break;
        }
    }
}
