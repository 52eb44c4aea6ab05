using Dmp.Kvm.Cpu;
using Iced.Intel;

namespace Dmp.Kvm.Machine;

/// <summary>Reads and decodes the instruction at RIP, without the traps of scanned pages. Allocates only when created.</summary>
internal sealed class InstructionFetcher
{
    private const int LongestInstruction = 15;

    private readonly GuestAccess access;
    private readonly ByteReader reader = new();
    private readonly Decoder decoder64;
    private readonly Decoder decoder32;

    internal InstructionFetcher(GuestAccess access)
    {
        this.access = access;
        decoder64 = Decoder.Create(64, reader);
        decoder32 = Decoder.Create(32, reader);
    }

    /// <summary>Fetches the instruction at an address.</summary>
    /// <param name="rip">The address.</param>
    /// <param name="compatibility">Whether it is 32-bit code.</param>
    /// <param name="instruction">The instruction.</param>
    /// <param name="isTrap">Whether a trap stands in its place.</param>
    /// <returns>Whether there is a valid instruction.</returns>
    internal bool TryFetch(ulong rip, bool compatibility, out Instruction instruction, out bool isTrap)
    {
        reader.Length = access.Fetch(rip, reader.Bytes, out isTrap);
        return TryDecode(compatibility ? decoder32 : decoder64, rip, out instruction);
    }

    /// <summary>Decodes a 64-bit instruction of one byte.</summary>
    /// <returns>Whether the byte is one.</returns>
    internal bool TryDecode(byte code, ulong rip, out Instruction instruction)
    {
        reader.Bytes[0] = code;
        reader.Length = 1;
        return TryDecode(decoder64, rip, out instruction);
    }

    private bool TryDecode(Decoder decoder, ulong rip, out Instruction instruction)
    {
        reader.Position = 0;
        decoder.IP = rip;
        decoder.Decode(out instruction);
        return !instruction.IsInvalid;
    }

    /// <summary>The bytes at an address, for descriptions.</summary>
    internal byte[] Bytes(ulong rip)
    {
        byte[] bytes = new byte[LongestInstruction];
        return bytes[..access.Fetch(rip, bytes, out _)];
    }

    private sealed class ByteReader : CodeReader
    {
        internal readonly byte[] Bytes = new byte[LongestInstruction];

        internal int Length { get; set; }

        internal int Position { get; set; }

        public override int ReadByte() => Position < Length ? Bytes[Position++] : -1;
    }
}
