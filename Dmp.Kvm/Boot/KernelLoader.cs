using Dmp.Kvm.Memory;

namespace Dmp.Kvm.Boot;

/// <summary>Loads a kernel as its protocol demands.</summary>
public static class KernelLoader
{
    /// <summary>Loads.</summary>
    /// <param name="ram">Guest RAM, all zero.</param>
    /// <param name="kernel">The kernel; no longer needed afterwards.</param>
    /// <param name="request">What to start it with.</param>
    /// <returns>How the first vCPU begins.</returns>
    /// <exception cref="BootException">The parts do not fit into RAM or into the protocol, or the RAM disk cannot be read.</exception>
    public static BootState Load(IGuestRam ram, KernelImage kernel, BootRequest request)
    {
        ArgumentNullException.ThrowIfNull(ram);
        ArgumentNullException.ThrowIfNull(kernel);
        ArgumentNullException.ThrowIfNull(request);
        if (ram.Ranges.Count == 0 || ram.Ranges[0].Start.Value != 0)
        {
            throw new BootException("guest RAM does not begin at address 0; give the machine memory");
        }

        if (request.Use32BitEntry && !kernel.IsPacked)
        {
            throw new KernelImageException(kernel.Path, "has no 32-bit entry to choose; give a bzImage");
        }

        return kernel.Protocol switch
        {
            BootProtocol.Multiboot => MultibootLoader.Load(ram, kernel, request),
            BootProtocol.Linux64 when !request.Use32BitEntry => LinuxLoader.Load(ram, kernel, request, BootMode.LongMode),
            _ => LinuxLoader.Load(ram, kernel, request, BootMode.ProtectedMode),
        };
    }
}
