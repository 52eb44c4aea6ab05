using System.Buffers.Binary;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Monitor;

/// <summary>
/// A vCPU's shadow tables in the monitor region, and the generated code that clears entries from inside the VM: for each run of slots
/// <c>mov rdi, address; mov ecx, count; rep stosq</c>, then an OUT. (A KVM that shadows our tables notices only writes made by code in
/// the VM; <c>rep stosq</c> is the cheapest of those where CPL 0 is emulated.)
/// </summary>
internal sealed class ShadowProgram : IShadowMemory
{
    private const int RunSize = 18;
    private const int EpilogueSize = 16;

    private readonly MappedMemory region;
    private readonly ulong poolOffset;
    private readonly ulong programOffset;
    private readonly bool reloadCr3;
    private readonly Action<ulong> execute;

    /// <summary>Creates the access to a vCPU's pool.</summary>
    /// <param name="region">The monitor region.</param>
    /// <param name="vcpu">Index of the vCPU.</param>
    /// <param name="reloadCr3">Whether the TLB must be flushed behind it.</param>
    /// <param name="execute">Runs the code at a monitor address at CPL 0 until its OUT.</param>
    internal ShadowProgram(MappedMemory region, int vcpu, bool reloadCr3, Action<ulong> execute)
    {
        this.region = region;
        this.reloadCr3 = reloadCr3;
        this.execute = execute;
        poolOffset = MachineLayout.ShadowPool(vcpu);
        programOffset = MachineLayout.VcpuBlock(vcpu) + MachineLayout.ShadowProgramOffset;
    }

    /// <inheritdoc/>
    public int Tables => MachineLayout.ShadowTablesPerVcpu;

    /// <inheritdoc/>
    public ulong MachineBase => MachineLayout.MonitorMachineBase + poolOffset;

    /// <inheritdoc/>
    public ulong Get(int slot) => region.Word(poolOffset + ((ulong)slot * Paging.EntrySize));

    /// <inheritdoc/>
    public void Set(int slot, ulong entry) =>
        Volatile.Write(ref region.Word(poolOffset + ((ulong)slot * Paging.EntrySize)), entry);

    /// <inheritdoc/>
    public void Clear(Span<int> slots)
    {
        slots.Sort();
        int done = 0;
        while (done < slots.Length)
        {
            Span<byte> code = region.Slice(programOffset, MachineLayout.ShadowProgramSize);
            int length = Emit(code, [0x31, 0xC0]); // xor eax, eax
            while (done < slots.Length && length + RunSize + EpilogueSize <= code.Length)
            {
                int count = 1;
                while (done + count < slots.Length && slots[done + count] == slots[done] + count)
                {
                    count++;
                }

                length += EmitRun(code[length..], slots[done], count);
                done += count;
            }

            if (reloadCr3)
            {
                length += Emit(code[length..], [0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8]); // mov rax, cr3; mov cr3, rax
            }

            _ = Emit(code[length..], [0xE6, MachineLayout.ShadowProgramDonePort, 0xF4]); // out port, al; hlt
            execute(MachineLayout.MonitorBase + programOffset);
        }
    }

    private static int Emit(Span<byte> code, ReadOnlySpan<byte> bytes)
    {
        bytes.CopyTo(code);
        return bytes.Length;
    }

    private int EmitRun(Span<byte> code, int slot, int count)
    {
        ulong address = MachineLayout.MonitorBase + poolOffset + ((ulong)slot * Paging.EntrySize);
        int length = Emit(code, [0x48, 0xBF]); // mov rdi, imm64
        BinaryPrimitives.WriteUInt64LittleEndian(code[length..], address);
        length += sizeof(ulong);
        if (count == 1)
        {
            return length + Emit(code[length..], [0x48, 0xAB]); // stosq
        }

        code[length++] = 0xB9; // mov ecx, imm32
        BinaryPrimitives.WriteInt32LittleEndian(code[length..], count);
        length += sizeof(int);
        return length + Emit(code[length..], [0xF3, 0x48, 0xAB]); // rep stosq
    }
}
