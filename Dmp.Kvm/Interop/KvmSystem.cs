using System.Runtime.InteropServices;

namespace Dmp.Kvm.Interop;

/// <summary>/dev/kvm itself.</summary>
internal sealed unsafe class KvmSystem : IDisposable
{
    private const string DevicePath = "/dev/kvm";
    private const int SupportedApiVersion = 12;
    private const int MaximumCpuidEntries = 256;

    private readonly int descriptor;

    private KvmSystem(int descriptor) => this.descriptor = descriptor;

    /// <summary>Opens /dev/kvm and checks that it can do what Dmp needs.</summary>
    /// <exception cref="HostUnsupportedException">It cannot; the message says what to do.</exception>
    internal static KvmSystem Open()
    {
        int descriptor = Libc.Open(DevicePath, Libc.OpenReadWrite | Libc.OpenCloseOnExec);
        if (descriptor < 0)
        {
            throw new HostUnsupportedException(Marshal.GetLastPInvokeError() switch
            {
                Libc.Enoent => $"{DevicePath} does not exist: load a KVM module (modprobe kvm_amd, kvm_intel or kvm_pvm), "
                    + "or use a host or instance type that offers KVM.",
                Libc.Eacces or Libc.Eperm => $"No permission to open {DevicePath}: run as root, or add your user to the "
                    + "group that owns it (usually: sudo usermod -aG kvm $USER, then log in again).",
                int errno => $"Opening {DevicePath} failed: {Marshal.GetPInvokeErrorMessage(errno)}.",
            });
        }

        KvmSystem system = new(descriptor);
        try
        {
            system.CheckApi();
            return system;
        }
        catch
        {
            system.Dispose();
            throw;
        }
    }

    /// <summary>The value of a capability, 0 when it is missing.</summary>
    internal int Check(KvmCapability capability) => Libc.Ioctl(descriptor, (nuint)KvmRequest.CheckExtension, (nint)(int)capability);

    /// <summary>The CPUID entries this KVM supports for guests.</summary>
    internal KvmCpuidEntry[] SupportedCpuid()
    {
        byte[] buffer = new byte[8 + (MaximumCpuidEntries * sizeof(KvmCpuidEntry))];
        fixed (byte* pointer = buffer)
        {
            *(uint*)pointer = MaximumCpuidEntries;
            if (Libc.Ioctl(descriptor, (nuint)KvmRequest.GetSupportedCpuid, pointer) < 0)
            {
                throw KvmException.Last("KVM_GET_SUPPORTED_CPUID", "Run ./dmp probe to see what this KVM can do.");
            }

            int count = (int)*(uint*)pointer;
            return new ReadOnlySpan<KvmCpuidEntry>(pointer + 8, count).ToArray();
        }
    }

    /// <summary>Creates a VM.</summary>
    internal KvmVm CreateVm()
    {
        int vm = Libc.Ioctl(descriptor, (nuint)KvmRequest.CreateVm, 0);
        if (vm < 0)
        {
            throw KvmException.Last("KVM_CREATE_VM", "Too many VMs, or too little memory for another one.");
        }

        int mapping = Libc.Ioctl(descriptor, (nuint)KvmRequest.GetVcpuMmapSize, 0);
        return new KvmVm(vm, mapping);
    }

    /// <inheritdoc/>
    public void Dispose() => _ = Libc.Close(descriptor);

    private void CheckApi()
    {
        int version = Libc.Ioctl(descriptor, (nuint)KvmRequest.GetApiVersion, 0);
        if (version != SupportedApiVersion)
        {
            throw new HostUnsupportedException(
                $"{DevicePath} speaks API version {version}; Dmp needs {SupportedApiVersion}: use a newer host kernel.");
        }

        foreach (KvmCapability needed in (ReadOnlySpan<KvmCapability>)[
            KvmCapability.UserMemory, KvmCapability.SyncRegs, KvmCapability.VcpuEvents, KvmCapability.ExtendedCpuid])
        {
            if (Check(needed) <= 0)
            {
                throw new HostUnsupportedException(
                    $"{DevicePath} lacks KVM_CAP {needed} (number {(int)needed}): use a newer host kernel.");
            }
        }

        const int RegsAndSregs = (int)(KvmRun.SyncRegs | KvmRun.SyncSregs);
        if ((Check(KvmCapability.SyncRegs) & RegsAndSregs) != RegsAndSregs)
        {
            throw new HostUnsupportedException($"{DevicePath} cannot synchronize registers through kvm_run: use a newer host kernel.");
        }
    }
}
