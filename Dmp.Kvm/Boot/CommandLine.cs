using System.Globalization;
using System.Text;

namespace Dmp.Kvm.Boot;

/// <summary>The kernel command line as it stands in memory.</summary>
internal static class CommandLine
{
    /// <summary>Encodes with the terminating zero.</summary>
    /// <param name="text">The command line.</param>
    /// <param name="limit">Longest that the kernel takes, in bytes without the zero (cmdline_size).</param>
    /// <exception cref="BootException">It is too long, or has a zero in it.</exception>
    public static byte[] Encode(string text, uint limit)
    {
        // UTF-8: the kernel passes bytes that are not ASCII through to user space as they are.
        int length = Encoding.UTF8.GetByteCount(text);
        uint longest = Math.Min(limit, BootLayout.CommandLineCapacity - 1);
        if (length > longest)
        {
            throw new BootException(string.Create(
                CultureInfo.InvariantCulture, $"the command line has {length} bytes, this kernel takes {longest}; shorten it"));
        }

        if (text.Contains('\0', StringComparison.Ordinal))
        {
            throw new BootException("the command line has a zero character, where the kernel would stop reading; remove it");
        }

        byte[] bytes = new byte[length + 1];
        Encoding.UTF8.GetBytes(text, bytes);
        return bytes;
    }
}
