using System.Globalization;
using System.Text;

namespace Dmp.Kvm.Machine;

/// <summary>A ring of the last exceptions of a vCPU, for failure reports. Belongs to the vCPU's thread.</summary>
/// <param name="capacity">How many are kept.</param>
internal sealed class RecentExits(int capacity)
{
    private readonly Entry[] entries = new Entry[capacity];
    private int next;

    internal void Add(byte vector, ulong rip, ulong address, uint error)
    {
        entries[next] = new Entry(vector, rip, address, error);
        next = (next + 1) % entries.Length;
    }

    /// <summary>Appends a line for each, the oldest first.</summary>
    internal void Describe(StringBuilder text)
    {
        for (int index = 0; index < entries.Length; index++)
        {
            Entry entry = entries[(next + index) % entries.Length];
            if (entry.Rip != 0)
            {
                _ = text.AppendLine(
                    CultureInfo.InvariantCulture,
                    $"  vector {entry.Vector,2} rip 0x{entry.Rip:x16} error 0x{entry.Error:x} cr2 0x{entry.Address:x16}");
            }
        }
    }

    private readonly record struct Entry(byte Vector, ulong Rip, ulong Address, uint Error);
}
