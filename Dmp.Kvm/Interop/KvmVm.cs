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

    /// <summary>
    /// Makes KVM_RUN return for every RDMSR and WRMSR that the vCPUs execute at CPL 0. Before the first of them runs.
    /// </summary>
    /// <returns>Whether KVM can do it.</returns>
    internal bool TryWatchMsrs()
    {
        // KVM_MSR_EXIT_REASON_*: invalid (the x2APIC's, which no filter covers), unknown, filtered.
        const ulong AllReasons = 7;
        KvmEnableCap exits = new() { Capability = (uint)KvmCapability.UserSpaceMsr, Argument = AllReasons };
        if (Libc.Ioctl(descriptor, (nuint)KvmRequest.EnableCap, &exits) < 0)
        {
            return false;
        }

        // A filter that allows nothing is refused: it allows the TSC, which no one knows better than KVM.
        const uint Tsc = 0x10;
        ulong one = 1;
        KvmMsrFilter filter = new()
        {
            Flags = KvmMsrFilter.DefaultDeny,
            RangeFlags = KvmMsrFilter.Read,
            RangeCount = 1,
            RangeFirst = Tsc,
            RangeBitmap = (ulong)&one,
        };
        return Libc.Ioctl(descriptor, (nuint)KvmRequest.SetMsrFilter, &filter) >= 0;
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
