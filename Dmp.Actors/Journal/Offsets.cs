using System.Globalization;

namespace Dmp.Actors.Journal;

/// <summary>Offsets from the kernel's base, for people.</summary>
internal static class Offsets
{
    /// <summary>With a sign and in hexadecimal: "+0x1a2b", "-0x10".</summary>
    /// <param name="offset">Offset in bytes.</param>
    public static string Text(long offset) => string.Create(
        CultureInfo.InvariantCulture,
        $"{(offset < 0 ? '-' : '+')}0x{(offset < 0 ? unchecked(0UL - (ulong)offset) : (ulong)offset):x}");
}
