using System.Buffers.Binary;
using System.Text;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Specs.Boot;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Dmp.Kvm.Specs.Machine;

/// <summary>
/// Kernels of a few instructions, as ELF64 files with one segment. They start at virtual CPL 0 in 64-bit mode with everything below
/// 4 GiB mapped to itself, interrupts off, no IDT, RSI at the boot parameters.
/// </summary>
internal static class TinyKernel
{
    /// <summary>Where the code lies, and its first instruction.</summary>
    public const ulong Entry = 0x400000;

    /// <summary>Memory that no code is near to.</summary>
    public const ulong Data = 0x600000;

    public const ushort SerialPort = 0x3F8;
    public const byte DebugExitPort = 0xF4;

    private const ulong MemoryBytes = 32UL << 20;
    private const ushort Pm1ControlPort = 0x604;
    private const ushort SoftOff = (5 << 10) | (1 << 13);
    private const int HeaderSize = 64;
    private const int ProgramHeaderSize = 56;
    private const int CodeOffset = 0x1000;

    /// <summary>A machine with such a kernel. Skips the spec where there is no KVM.</summary>
    /// <param name="write">Its code.</param>
    /// <param name="patching">Whether its code may be patched. Implants are out of reach from <see cref="Entry"/>.</param>
    /// <param name="audit">Whether the TLB is audited; then every return to user code is the VMM's.</param>
    /// <param name="cpus">Number of vCPUs; null for the usual number.</param>
    public static VirtualMachine Load(Action<Assembler> write, bool patching = false, bool audit = true, int? cpus = 1)
    {
        SkipWithoutKvm();
        using var kernel = new KernelFile(Elf(Assemble(write)));
        return VirtualMachine.Create(new MachineConfiguration
        {
            KernelPath = kernel.Path,
            Cpus = cpus,
            MemoryBytes = MemoryBytes,
            DebugExitPort = DebugExitPort,
            Audit = audit,
            Patching = patching,
        });
    }

    public static void SkipWithoutKvm() => Skip.IfNot(HasKvm(), "no /dev/kvm that this user can open");

    public static byte[] Assemble(Action<Assembler> write) => TinyMultiboot.Assemble(64, Entry, write);

    /// <summary>Writes a text to the serial port, character by character. Changes RAX and RDX.</summary>
    public static void Print(this Assembler a, string text)
    {
        a.mov(dx, SerialPort);
        foreach (byte letter in Encoding.ASCII.GetBytes(text))
        {
            a.mov(al, letter);
            a.@out(dx, al);
        }
    }

    /// <summary>Switches the machine off as ACPI says. Changes RAX and RDX.</summary>
    public static void PowerOff(this Assembler a)
    {
        a.mov(dx, Pm1ControlPort);
        a.mov(ax, SoftOff);
        a.@out(dx, ax);
    }

    /// <summary>Writes AL to the debug-exit port.</summary>
    public static void DebugExit(this Assembler a, byte value)
    {
        a.mov(al, value);
        a.@out(DebugExitPort, al);
    }

    /// <summary>What stands on the console since the last call.</summary>
    public static string Text(this VirtualMachine machine)
    {
        byte[] buffer = new byte[4096];
        return Encoding.ASCII.GetString(buffer.AsSpan(0, machine.Console.TakeOutput(buffer)));
    }

    /// <summary>The first vCPU's registers. Only while it is stopped.</summary>
    public static KvmRegs Registers(this VirtualMachine machine) => machine.InternalVcpus[0].Registers.Regs;

    /// <summary>A word of guest memory. Any thread.</summary>
    public static ref ulong Word(this VirtualMachine machine, ulong address) =>
        ref System.Runtime.InteropServices.MemoryMarshal.AsRef<ulong>(
            machine.Shared.Memory.Slice(new GuestPhysicalAddress(address), sizeof(ulong)));

    /// <summary>Waits until the guest, on another thread, has made a word larger than it was.</summary>
    public static ulong AwaitMore(this VirtualMachine machine, ulong address, ulong than)
    {
        bool grown = SpinWait.SpinUntil(() => Volatile.Read(ref machine.Word(address)) > than, TimeSpan.FromSeconds(30));
        Assert.True(grown, "the guest did not get that far");
        return Volatile.Read(ref machine.Word(address));
    }

    private static bool HasKvm()
    {
        try
        {
            using FileStream device = new("/dev/kvm", FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, bufferSize: 0);
            return true;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }

    private static byte[] Elf(byte[] code)
    {
        const ushort Executable = 2;
        const ushort X64 = 62;
        const uint Load = 1;
        byte[] elf = new byte[CodeOffset + code.Length];
        "\u007fELF\u0002\u0001\u0001"u8.CopyTo(elf);
        BinaryPrimitives.WriteUInt16LittleEndian(elf.AsSpan(16), Executable);
        BinaryPrimitives.WriteUInt16LittleEndian(elf.AsSpan(18), X64);
        Put(elf, 24, Entry);
        Put(elf, 32, HeaderSize);
        BinaryPrimitives.WriteUInt16LittleEndian(elf.AsSpan(54), ProgramHeaderSize);
        BinaryPrimitives.WriteUInt16LittleEndian(elf.AsSpan(56), 1);
        BinaryPrimitives.WriteUInt32LittleEndian(elf.AsSpan(HeaderSize), Load);
        Put(elf, HeaderSize + 8, CodeOffset);
        Put(elf, HeaderSize + 16, Entry);
        Put(elf, HeaderSize + 24, Entry);
        Put(elf, HeaderSize + 32, (ulong)code.Length);
        Put(elf, HeaderSize + 40, (ulong)code.Length);
        code.CopyTo(elf, CodeOffset);
        return elf;
    }

    private static void Put(byte[] bytes, int offset, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(offset), value);
}
