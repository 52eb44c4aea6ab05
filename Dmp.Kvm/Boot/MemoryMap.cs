using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>Address range types (ACPI 6.4, 15.1), which boot_params and multiboot share.</summary>
internal enum MemoryType : uint
{
    Ram = 1,
    Reserved = 2,
}

/// <summary>A range of the memory map.</summary>
/// <param name="Start">First address.</param>
/// <param name="Length">Bytes.</param>
/// <param name="Type">What is there.</param>
internal readonly record struct MemoryMapEntry(ulong Start, ulong Length, MemoryType Type);

/// <summary>The memory map that a kernel is told: RAM, less what a PC reserves below 1 MiB (there are the ACPI tables).</summary>
internal static class MemoryMap
{
    /// <summary>As many as boot_params has room for.</summary>
    private const int LargestMap = 128;

    /// <summary>The map, in ascending order.</summary>
    public static IReadOnlyList<MemoryMapEntry> Of(IGuestRam ram)
    {
        ulong conventional = BootLayout.ConventionalEnd.Value;
        ulong high = BootLayout.HighMemory.Value;
        List<MemoryMapEntry> map =
            [new(0, conventional, MemoryType.Ram), new(conventional, high - conventional, MemoryType.Reserved)];
        foreach (GuestRamRange range in ram.Ranges.Take(LargestMap - map.Count))
        {
            ulong start = Math.Max(range.Start.Value, high);
            ulong end = range.Start.Value + range.Length;
            if (end > start)
            {
                map.Add(new(start, end - start, MemoryType.Ram));
            }
        }

        return map;
    }
}
