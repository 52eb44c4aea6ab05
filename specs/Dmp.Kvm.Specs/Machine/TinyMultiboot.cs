using System.Buffers.Binary;
using Dmp.Kvm.Machine;
using Dmp.Kvm.Specs.Boot;
using Iced.Intel;

namespace Dmp.Kvm.Specs.Machine;

/// <summary>Multiboot 1 kernels of a few instructions, as ELF32 files with one segment. They start in 32-bit protected mode.</summary>
internal static class TinyMultiboot
{
    public const uint HeaderMagic = 0x1BADB002;

    /// <summary>Where the multiboot header is in the file.</summary>
    public const int HeaderOffset = 0x60;

    private const int CodeOffset = 0x1000;
    private const ulong MemoryBytes = 32UL << 20;

    /// <summary>A machine with such a kernel. Skips the spec where there is no KVM.</summary>
    public static VirtualMachine Load(Action<Assembler> write, string commandLine = "", byte[]? module = null)
    {
        TinyKernel.SkipWithoutKvm();
        using var kernel = new KernelFile(Elf(Assemble(32, TinyKernel.Entry, write)));
        using KernelFile? initrd = module is null ? null : new KernelFile(module);
        return VirtualMachine.Create(new MachineConfiguration
        {
            KernelPath = kernel.Path,
            InitrdPath = initrd?.Path,
            CommandLine = commandLine,
            Cpus = 1,
            MemoryBytes = MemoryBytes,
            DebugExitPort = TinyKernel.DebugExitPort,
            Audit = true,
        });
    }

    public static byte[] Assemble(int bitness, ulong address, Action<Assembler> write)
    {
        var assembler = new Assembler(bitness);
        write(assembler);
        using var code = new MemoryStream();
        assembler.Assemble(new StreamCodeWriter(code), address);
        return code.ToArray();
    }

    /// <summary>An image.</summary>
    /// <param name="code">Its code, for <see cref="TinyKernel.Entry"/>.</param>
    /// <param name="flags">Flags of the multiboot header.</param>
    public static byte[] Elf(byte[] code, uint flags = 3)
    {
        const ushort Executable = 2;
        const ushort I386 = 3;
        const uint Load = 1;
        const int HeaderSize = 52;
        const ushort ProgramHeaderSize = 32;
        byte[] elf = new byte[CodeOffset + code.Length];
        "\u007fELF\u0001\u0001\u0001"u8.CopyTo(elf);
        BinaryPrimitives.WriteUInt16LittleEndian(elf.AsSpan(16), Executable);
        BinaryPrimitives.WriteUInt16LittleEndian(elf.AsSpan(18), I386);
        Put(elf, 24, (uint)TinyKernel.Entry);
        Put(elf, 28, HeaderSize);
        BinaryPrimitives.WriteUInt16LittleEndian(elf.AsSpan(42), ProgramHeaderSize);
        BinaryPrimitives.WriteUInt16LittleEndian(elf.AsSpan(44), 1);
        Put(elf, HeaderSize, Load);
        Put(elf, HeaderSize + 4, CodeOffset);
        Put(elf, HeaderSize + 8, (uint)TinyKernel.Entry);
        Put(elf, HeaderSize + 12, (uint)TinyKernel.Entry);
        Put(elf, HeaderSize + 16, (uint)code.Length);
        Put(elf, HeaderSize + 20, (uint)code.Length);
        Put(elf, HeaderOffset, HeaderMagic);
        Put(elf, HeaderOffset + 4, flags);
        Put(elf, HeaderOffset + 8, unchecked(0 - HeaderMagic - flags));
        code.CopyTo(elf, CodeOffset);
        return elf;
    }

    private static void Put(byte[] bytes, int offset, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(offset), value);
}
