using Dmp.Kvm.Patching;

namespace Dmp.Kvm.Specs.Patching;

/// <summary>Code at <see cref="Base"/>, as functions one behind the other.</summary>
internal sealed class FakeText(byte[] code, params int[] functions) : IGuestText
{
    internal const ulong Base = 0xFFFF_FFFF_8100_0000;

    internal HashSet<ulong> Compared { get; } = [];

    internal HashSet<ulong> Reserved { get; } = [];

    public int Read(ulong address, Span<byte> destination)
    {
        ulong offset = address - Base;
        if (offset >= (ulong)code.Length)
        {
            return 0;
        }

        int length = Math.Min(destination.Length, code.Length - (int)offset);
        code.AsSpan((int)offset, length).CopyTo(destination);
        return length;
    }

    public (ulong Start, ulong End)? Function(ulong address)
    {
        int index = Array.FindLastIndex(functions, start => Base + (ulong)start <= address);
        return index < 0 || address >= Base + (ulong)code.Length
            ? null
            : (Base + (ulong)functions[index], Base + (ulong)(index + 1 < functions.Length ? functions[index + 1] : code.Length));
    }

    public bool? IsComparedLater(ulong address) => Compared.Contains(address);

    public bool IsReserved(ulong address) => Reserved.Contains(address);
}
