namespace Dmp.Kvm.Interop;

/// <summary>A VM: an address space and its vCPUs. Created and disposed by one thread.</summary>
internal sealed unsafe class KvmVm : IDisposable
{
    private readonly int descriptor;
    private readonly int vcpuMapping;
    private uint slots;

    internal KvmVm(int descriptor, int vcpuMapping)
    {
        this.descriptor = descriptor;
        this.vcpuMapping = vcpuMapping;
    }

    /// <summary>Makes memory appear in the machine's address space.</summary>
    /// <param name="machineAddress">Where, a multiple of the page size.</param>
    /// <param name="memory">The memory.</param>
    /// <param name="offset">First byte in <paramref name="memory"/>.</param>
    /// <param name="size">Bytes.</param>
    internal void AddMemory(ulong machineAddress, MappedMemory memory, ulong offset, ulong size)
    {
        KvmMemoryRegion region = new()
        {
            Slot = slots++,
            GuestPhysicalAddress = machineAddress,
            Size = size,
            UserAddress = memory.HostAddress + offset,
        };
        if (Libc.Ioctl(descriptor, (nuint)KvmRequest.SetUserMemoryRegion, &region) < 0)
        {
            throw KvmException.Last(
                $"KVM_SET_USER_MEMORY_REGION of {size >> 20} MiB at 0x{machineAddress:x}",
                "Give the guest less memory.");
        }
    }

    /// <summary>Creates a vCPU. Its TSC is the host's where KVM can do that.</summary>
    internal KvmVcpu CreateVcpu(int index)
    {
        int vcpu = Libc.Ioctl(descriptor, (nuint)KvmRequest.CreateVcpu, index);
        if (vcpu < 0)
        {
            throw KvmException.Last($"KVM_CREATE_VCPU {index}", "Use fewer vCPUs.");
        }

        KvmVcpu created = new(vcpu, vcpuMapping);
        created.ShareHostTsc();
        return created;
    }

    /// <inheritdoc/>
    public void Dispose() => _ = Libc.Close(descriptor);
}
