using System.Buffers.Binary;

namespace Dmp.Kvm.Boot;

/// <summary>
/// The setup header of a bzImage (Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"). The same fields
/// stand at the same offsets in the file and in boot_params.
/// </summary>
internal sealed class SetupHeader
{
    /// <summary>Where the header begins, in the file and in boot_params.</summary>
    public const int Start = 0x1F1;

    /// <summary>How far the header may reach in boot_params; what follows there is something else (EDD).</summary>
    public const int Limit = 0x290;

    /// <summary>Bytes of a file that must be there before any field can be read.</summary>
    public const int MinimumFile = Limit;

    /// <summary>"HdrS", little endian.</summary>
    public const uint Magic = 0x53726448;

    /// <summary>boot_flag of every boot sector.</summary>
    public const ushort BootFlag = 0xAA55;

    /// <summary>payload_offset and payload_length exist since 2.08; without them the kernel proper cannot be found.</summary>
    private const ushort FirstWithPayload = 0x0208;

    /// <summary>xloadflags exists since 2.12.</summary>
    private const ushort FirstWithLoadFlags = 0x020C;

    /// <summary>Version told to a kernel that came without a header.</summary>
    private const ushort CurrentVersion = 0x020F;

    /// <summary>xloadflags: the kernel has the 64-bit entry point.</summary>
    private const ushort Kernel64 = 1 << 0;

    /// <summary>relocatable_kernel and kernel_alignment exist since 2.05, pref_address and init_size since 2.10.</summary>
    private const ushort FirstWithPreferredAddress = 0x020A;

    private const int SectorSize = 512;
    private const int DefaultSetupSectors = 4;

    // A kernel without a header gets what the current protocol promises of every x86-64 kernel.
    private const uint DefaultInitrdMaximum = 0x7FFFFFFF;
    private const uint DefaultCommandLineSize = 2047;

    private readonly byte[] _fields;

    private SetupHeader(byte[] fields)
    {
        _fields = fields;
    }

    /// <summary>The header's bytes, from <see cref="Start"/> on.</summary>
    public ReadOnlySpan<byte> Bytes => _fields;

    /// <summary>Boot protocol version, major in the high byte.</summary>
    public ushort Version => U16(Field.Version);

    /// <summary>Highest address that the last byte of the initial RAM disk may have.</summary>
    public uint InitrdMaximum => U32(Field.InitrdAddressMaximum);

    /// <summary>Longest command line in bytes, without the terminating zero.</summary>
    public uint CommandLineSize => U32(Field.CommandLineSize);

    /// <summary>Memory that the kernel needs from its start until it can read the memory map, in bytes; 0 when not said.</summary>
    public uint InitSize => U32(Field.InitSize);

    /// <summary>Whether the kernel says that it has no 64-bit entry point; an old one says nothing.</summary>
    public bool Lacks64BitEntry => Version >= FirstWithLoadFlags && (U16(Field.LoadFlagsExtended) & Kernel64) == 0;

    /// <summary>Where the protected-mode part wants to lie when it may lie anywhere, else 1 MiB, where it has to.</summary>
    public ulong ProtectedModeAddress => IsRelocatable ? PreferredAddress : BootLayout.HighMemory.Value;

    /// <summary>Where the kernel unpacks itself to; <see cref="InitSize"/> counts from here.</summary>
    public ulong PreferredAddress => Version >= FirstWithPreferredAddress ? U64(Field.PreferredAddress) : BootLayout.HighMemory.Value;

    private bool IsRelocatable => Version >= FirstWithPreferredAddress && _fields[Field.RelocatableKernel - Start] != 0;

    /// <summary>Where the protected-mode part begins in the file.</summary>
    public long ProtectedModeOffset
    {
        get
        {
            int sectors = _fields[Field.SetupSectors - Start];
            return (long)((sectors == 0 ? DefaultSetupSectors : sectors) + 1) * SectorSize;
        }
    }

    /// <summary>Whether a file begins as a bzImage does.</summary>
    /// <param name="file">The first bytes of the file.</param>
    public static bool IsPresent(ReadOnlySpan<byte> file) =>
        file.Length >= MinimumFile
        && BinaryPrimitives.ReadUInt16LittleEndian(file[Field.BootFlag..]) == BootFlag
        && BinaryPrimitives.ReadUInt32LittleEndian(file[Field.Magic..]) == Magic;

    /// <summary>Reads and checks the header of a bzImage.</summary>
    /// <param name="path">The file's name, for messages.</param>
    /// <param name="file">The first bytes of the file; <see cref="IsPresent"/> holds.</param>
    /// <exception cref="KernelImageException">The header is too old, or damaged.</exception>
    public static SetupHeader Parse(string path, ReadOnlySpan<byte> file)
    {
        ushort version = BinaryPrimitives.ReadUInt16LittleEndian(file[Field.Version..]);
        if (version < FirstWithPayload)
        {
            throw new KernelImageException(
                path,
                $"boot protocol {version >> 8}.{version & 0xFF:d2} is too old; "
                + "use a kernel with protocol 2.08 or later (Linux 2.6.26)");
        }

        // The jump at 0x200 skips the header: its displacement, counted from the next instruction, is the header's end.
        int end = Field.Magic + file[Field.JumpDisplacement];
        if (end < Field.InitSize + sizeof(uint) && version >= FirstWithLoadFlags)
        {
            throw new KernelImageException(
                path, $"the setup header ends at 0x{end:x}, before its last field; the file is damaged, get it again");
        }

        byte[] fields = new byte[Limit - Start];
        file[Start..Math.Min(end, Limit)].CopyTo(fields);
        return new SetupHeader(fields);
    }

    /// <summary>The header for a kernel that has none: a bare vmlinux.</summary>
    public static SetupHeader ForBareKernel()
    {
        var header = new SetupHeader(new byte[Limit - Start]);
        header.Put(Field.BootFlag, BootFlag);
        header.Put(Field.Magic, Magic);
        header.Put(Field.Version, CurrentVersion);
        header.Put(Field.InitrdAddressMaximum, DefaultInitrdMaximum);
        header.Put(Field.CommandLineSize, DefaultCommandLineSize);
        return header;
    }

    /// <summary>Where the compressed kernel is in the file.</summary>
    /// <param name="path">The file's name, for messages.</param>
    /// <param name="fileLength">Bytes of the file.</param>
    /// <exception cref="KernelImageException">The payload is empty, or not inside the file.</exception>
    public (int Start, int Length) Payload(string path, int fileLength)
    {
        // 64-bit sums: no combination of two 32-bit fields can wrap.
        long start = ProtectedModeOffset + U32(Field.PayloadOffset);
        long length = U32(Field.PayloadLength);
        if (length == 0)
        {
            throw new KernelImageException(path, "the header names no payload; the file is damaged, get it again");
        }

        if (start + length > fileLength)
        {
            throw new KernelImageException(
                path, $"truncated: the payload ends at byte {start + length}, the file at byte {fileLength}; get it again");
        }

        return ((int)start, (int)length);
    }

    private ushort U16(int field) => BinaryPrimitives.ReadUInt16LittleEndian(_fields.AsSpan(field - Start));

    private uint U32(int field) => BinaryPrimitives.ReadUInt32LittleEndian(_fields.AsSpan(field - Start));

    private ulong U64(int field) => BinaryPrimitives.ReadUInt64LittleEndian(_fields.AsSpan(field - Start));

    private void Put(int field, ushort value) => BinaryPrimitives.WriteUInt16LittleEndian(_fields.AsSpan(field - Start), value);

    private void Put(int field, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(_fields.AsSpan(field - Start), value);

    /// <summary>Offsets of the fields, in the file and in boot_params.</summary>
    public static class Field
    {
        /// <summary>setup_sects, 1 byte.</summary>
        public const int SetupSectors = 0x1F1;

        /// <summary>vid_mode, 2 bytes.</summary>
        public const int VideoMode = 0x1FA;

        /// <summary>boot_flag, 2 bytes.</summary>
        public const int BootFlag = 0x1FE;

        /// <summary>Displacement byte of the jump instruction.</summary>
        public const int JumpDisplacement = 0x201;

        /// <summary>header, 4 bytes: "HdrS".</summary>
        public const int Magic = 0x202;

        /// <summary>version, 2 bytes.</summary>
        public const int Version = 0x206;

        /// <summary>type_of_loader, 1 byte.</summary>
        public const int LoaderType = 0x210;

        /// <summary>loadflags, 1 byte.</summary>
        public const int LoadFlags = 0x211;

        /// <summary>code32_start, 4 bytes.</summary>
        public const int Code32Start = 0x214;

        /// <summary>ramdisk_image, 4 bytes.</summary>
        public const int RamdiskImage = 0x218;

        /// <summary>ramdisk_size, 4 bytes.</summary>
        public const int RamdiskSize = 0x21C;

        /// <summary>cmd_line_ptr, 4 bytes.</summary>
        public const int CommandLinePointer = 0x228;

        /// <summary>initrd_addr_max, 4 bytes.</summary>
        public const int InitrdAddressMaximum = 0x22C;

        /// <summary>relocatable_kernel, 1 byte.</summary>
        public const int RelocatableKernel = 0x234;

        /// <summary>xloadflags, 2 bytes.</summary>
        public const int LoadFlagsExtended = 0x236;

        /// <summary>cmdline_size, 4 bytes.</summary>
        public const int CommandLineSize = 0x238;

        /// <summary>payload_offset, 4 bytes.</summary>
        public const int PayloadOffset = 0x248;

        /// <summary>payload_length, 4 bytes.</summary>
        public const int PayloadLength = 0x24C;

        /// <summary>setup_data, 8 bytes.</summary>
        public const int SetupData = 0x250;

        /// <summary>pref_address, 8 bytes.</summary>
        public const int PreferredAddress = 0x258;

        /// <summary>init_size, 4 bytes.</summary>
        public const int InitSize = 0x260;
    }
}
