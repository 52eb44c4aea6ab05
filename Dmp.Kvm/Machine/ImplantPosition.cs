using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;
using Dmp.Kvm.Memory;
using Dmp.Kvm.Patching;

namespace Dmp.Kvm.Machine;

/// <summary>
/// Where a vCPU that left guest code stands when that is in an implant, and what RIP the guest has there. Between two instructions of a
/// template the guest is at no address: nothing may happen to it, and RIP stays the real one. The vCPU's thread.
/// </summary>
/// <param name="map">What addresses in the arena mean; null without patches.</param>
/// <param name="kvm">The vCPU's registers.</param>
/// <param name="page">The page that it shares with implants.</param>
internal sealed class ImplantPosition(ImplantMap? map, KvmVcpu kvm, VcpuPage page)
{
    private ImplantAddress? point;
    private ulong realRip;

    /// <summary>Whether the vCPU stands between two instructions of a template.</summary>
    internal bool InsideTemplate => point is { Point: ImplantPoint.Inner };

    /// <summary>Whether the guest cannot be stopped where it is, or not before its next instruction is over.</summary>
    internal bool HoldsOff => point is { Point: ImplantPoint.Inner or ImplantPoint.Shadowed };

    /// <summary>Whether the guest's instruction has not ended: the jump to the implant has, or a part of a template.</summary>
    internal bool InsideInstruction => point is { Point: ImplantPoint.Inner or ImplantPoint.Emulate } or { Offset: 0 };

    /// <summary>Where the guest instruction is that RIP belongs to.</summary>
    internal ulong GuestRip => InsideTemplate ? point!.Value.GuestAddress : kvm.Regs.Rip;

    /// <summary>The vCPU is somewhere else.</summary>
    internal void Forget() => point = null;

    /// <summary>Finds out whether the guest stopped in an implant. If that is exactly before a guest instruction, RIP becomes its.</summary>
    /// <returns>Whether it stands behind an STI; null where the implant does not say.</returns>
    internal bool? Find()
    {
        point = null;
        ref KvmRegs regs = ref kvm.Regs;
        if (map is null || !ImplantMap.IsInArena(regs.Rip))
        {
            return null;
        }

        point = map.Find(regs.Rip);
        realRip = regs.Rip;
        if (point is not { Point: not ImplantPoint.Inner } exact)
        {
            return null;
        }

        regs.Rip = exact.GuestAddress;
        return exact.Point == ImplantPoint.Shadowed;
    }

    /// <summary>RIP is the real one again: the guest goes on where it stopped.</summary>
    internal void GoOn() => kvm.Regs.Rip = realRip;

    /// <summary>The instruction of a template faults for the guest: as if it had not begun.</summary>
    internal void UndoTemplate()
    {
        if (point is not { Point: ImplantPoint.Inner } inner)
        {
            return;
        }

        ref KvmRegs regs = ref kvm.Regs;
        regs.Rip = inner.GuestAddress;
        if (inner.RegistersSaved)
        {
            regs.Rax = page[VcpuPageField.Scratch0];
            regs.Rcx = page[VcpuPageField.Scratch1];
        }

        point = null;
    }

    /// <summary>
    /// Whether kernel code went to the inside of a window: a saved context from before the patch, or a branch that nobody foresaw.
    /// </summary>
    internal bool IsInsideWindow(ulong rip) => map is not null && point is null && map.RealAddress(rip) != rip;
}
