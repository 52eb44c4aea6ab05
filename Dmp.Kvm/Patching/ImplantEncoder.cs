using System.Buffers.Binary;
using System.Collections.Immutable;
using Iced.Intel;

namespace Dmp.Kvm.Patching;

/// <summary>An implant's code for one address, with the meaning of each of its instructions.</summary>
/// <param name="Address">Where it is to run.</param>
/// <param name="Code">Its bytes.</param>
/// <param name="Points">Its instructions in order.</param>
internal sealed record EncodedImplant(ulong Address, ImmutableArray<byte> Code, ImmutableArray<ImplantAddress> Points);

/// <summary>What an instruction of an implant means for the guest.</summary>
/// <param name="Offset">Offset in the implant.</param>
/// <param name="GuestAddress">The guest instruction that it belongs to.</param>
/// <param name="Point">How.</param>
/// <param name="RegistersSaved">RAX and RCX of the guest are in Scratch0 and Scratch1, and may have changed.</param>
internal readonly record struct ImplantAddress(int Offset, ulong GuestAddress, ImplantPoint Point, bool RegistersSaved);

/// <summary>Makes implants and the jumps to them. Pure.</summary>
internal static class ImplantEncoder
{
    /// <summary>Bytes of a jump with a 32-bit displacement.</summary>
    internal const int JumpLength = 5;

    /// <summary>Bytes of a jump with an 8-bit displacement.</summary>
    internal const int ShortJumpLength = 2;

    private const byte JumpOpcode = 0xE9;
    private const byte ShortJumpOpcode = 0xEB;
    private const byte Breakpoint = 0xCC;
    private const int DecoderBits = 64;

    /// <summary>Decodes the instructions of a window.</summary>
    internal static ImmutableArray<Instruction> Decode(ulong address, ReadOnlySpan<byte> bytes)
    {
        Decoder decoder = Decoder.Create(DecoderBits, new ByteArrayCodeReader(bytes.ToArray()), address);
        ImmutableArray<Instruction>.Builder instructions = ImmutableArray.CreateBuilder<Instruction>();
        while (decoder.IP < address + (ulong)bytes.Length)
        {
            decoder.Decode(out Instruction instruction);
            instructions.Add(instruction);
        }

        return instructions.DrainToImmutable();
    }

    /// <summary>Makes the implant for a window.</summary>
    /// <param name="window">The window's instructions.</param>
    /// <param name="templates">The templates.</param>
    /// <param name="address">Where the implant is to run.</param>
    /// <param name="reason">Why it cannot be made.</param>
    /// <returns>Null when it cannot.</returns>
    internal static EncodedImplant? Encode(
        ImmutableArray<Instruction> window, TemplateSet templates, ulong address, out string reason)
    {
        ImplantAssembler code = new();
        foreach (Instruction instruction in window)
        {
            code.Begin(instruction.IP);
            if (templates.Find(instruction) is { } template)
            {
                template.Emit(code, instruction);
            }
            else if (CodeScan.SilentInstructions.IsSilent(instruction))
            {
                code.Emulate();
            }
            else
            {
                // A trapping sensitive instruction without a template faults where it lies now, and is emulated as before.
                code.Move(instruction);
            }
        }

        Instruction last = window[^1];
        code.Begin(last.NextIP);
        if (last.FlowControl is not (FlowControl.Return or FlowControl.Interrupt))
        {
            code.Asm.jmp(last.NextIP);
        }

        CodeBuffer buffer = new();
        if (!code.Asm.TryAssemble(
            buffer, address, out string? error, out AssemblerResult result, BlockEncoderOptions.ReturnNewInstructionOffsets))
        {
            reason = $"an instruction cannot be moved ({error.ReplaceLineEndings(" ")})";
            return null;
        }

        IReadOnlyList<ImplantAddress> meanings = code.Points;
        uint[] offsets = result.Result[0].NewInstructionOffsets;
        ImmutableArray<ImplantAddress>.Builder points = ImmutableArray.CreateBuilder<ImplantAddress>(offsets.Length);
        for (int index = 0; index < offsets.Length; index++)
        {
            if (offsets[index] == uint.MaxValue)
            {
                reason = "an instruction cannot be moved as it is";
                return null;
            }

            points.Add(meanings[index] with { Offset = (int)offsets[index] });
        }

        reason = "";
        return new EncodedImplant(address, [.. buffer.Bytes], points.DrainToImmutable());
    }

    /// <summary>What a window's bytes become: a jump, and behind it what <see cref="Behind"/> says.</summary>
    /// <param name="window">Address of the window.</param>
    /// <param name="original">The guest's own bytes there.</param>
    /// <param name="implant">Where the jump leads.</param>
    internal static ImmutableArray<byte> Jump(ulong window, ReadOnlySpan<byte> original, ulong implant)
    {
        byte[] bytes = Behind(window, original, JumpLength);
        bytes[0] = JumpOpcode;
        long displacement = (long)(implant - (window + JumpLength));
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(1), checked((int)displacement));
        return [.. bytes];
    }

    /// <summary>What a window's bytes become whose jump leads to a springboard.</summary>
    /// <param name="window">Address of the window.</param>
    /// <param name="original">The guest's own bytes there.</param>
    /// <param name="springboard">Where the jump leads.</param>
    internal static ImmutableArray<byte> ShortJump(ulong window, ReadOnlySpan<byte> original, ulong springboard)
    {
        byte[] bytes = Behind(window, original, ShortJumpLength);
        bytes[0] = ShortJumpOpcode;
        long displacement = (long)(springboard - (window + ShortJumpLength));
        bytes[1] = unchecked((byte)checked((sbyte)displacement));
        return [.. bytes];
    }

    /// <summary>
    /// A window's bytes with room for a jump. Nothing runs behind it but a context that was saved there, and then any whole instruction may: it
    /// does what it does in the implant, or faults and goes on there. So each stays as the scan left it, for the guest reads them: a kernel that
    /// probes its own code copies single instructions. What is left of one that the jump cuts off reads as somebody else's breakpoint, so that
    /// nobody puts one of his own there.
    /// </summary>
    /// <param name="window">Address of the window.</param>
    /// <param name="original">The guest's own bytes there.</param>
    /// <param name="jump">Bytes of the jump.</param>
    internal static byte[] Behind(ulong window, ReadOnlySpan<byte> original, int jump)
    {
        byte[] bytes = original.ToArray();
        foreach (Instruction instruction in Decode(window, original))
        {
            int offset = (int)(instruction.IP - window);
            int end = offset + instruction.Length;
            if (offset >= jump && CodeScan.SilentInstructions.IsSilent(instruction))
            {
                bytes[offset] = CodeScan.CodePages.Trap;
            }
            else if (offset < jump && end > jump && !instruction.IsInvalid)
            {
                bytes.AsSpan(jump, end - jump).Fill(Breakpoint);
            }
        }

        return bytes;
    }

    private sealed class CodeBuffer : CodeWriter
    {
        internal List<byte> Bytes { get; } = [];

        public override void WriteByte(byte value) => Bytes.Add(value);
    }
}
