using System.Globalization;

namespace Dmp.Host.Verbs;

/// <summary>A size of memory as people write it: 512M, 1G, 1536MiB, or plain bytes.</summary>
internal static class MemorySize
{
    private const string Units = "KMGT";
    private const int BitsPerUnit = 10;

    /// <summary>Reads a size.</summary>
    /// <param name="text">The text.</param>
    /// <param name="bytes">The size in bytes.</param>
    /// <returns>Whether it is one.</returns>
    public static bool TryParse(string text, out ulong bytes)
    {
        string number = text.ToUpperInvariant();
        int shift = 0;
        foreach (string ending in new[] { "IB", "B", "" })
        {
            int unit = number.Length > ending.Length && number.EndsWith(ending, StringComparison.Ordinal)
                ? Units.IndexOf(number[^(ending.Length + 1)], StringComparison.Ordinal)
                : -1;
            if (unit >= 0)
            {
                shift = BitsPerUnit * (unit + 1);
                number = number[..^(ending.Length + 1)];
                break;
            }
        }

        bytes = 0;
        if (!ulong.TryParse(number, NumberStyles.None, CultureInfo.InvariantCulture, out ulong value) || value > ulong.MaxValue >> shift)
        {
            return false;
        }

        bytes = value << shift;
        return true;
    }

    /// <summary>Writes a size as short as it can be read back.</summary>
    public static string Format(ulong bytes)
    {
        int unit = 0;
        while (unit < Units.Length && bytes != 0 && bytes % (1UL << BitsPerUnit) == 0)
        {
            bytes >>= BitsPerUnit;
            unit++;
        }

        return bytes.ToString(CultureInfo.InvariantCulture) + (unit == 0 ? "" : Units[unit - 1]);
    }
}
