using System.Globalization;
using System.Text;
using Dmp.Kvm.Cpu;
using Dmp.Kvm.Interop;

namespace Dmp.Kvm.Machine;

/// <summary>A vCPU's state as text, for people who have to find out why a guest failed.</summary>
internal static class VcpuDescription
{
    internal static string Describe(KvmVcpu kvm, CpuState state, InstructionFetcher fetcher, RecentExits recent, ExitTable exits)
    {
        StringBuilder text = new();
        KvmRegs r = kvm.Regs;
        CultureInfo culture = CultureInfo.InvariantCulture;
        _ = text.AppendLine(culture, $"rip {r.Rip:x16} rflags {r.Rflags:x8} virtual cpl {state.Cpl} if {(state.InterruptFlag ? 1 : 0)}");
        _ = text.AppendLine(culture, $"rax {r.Rax:x16} rbx {r.Rbx:x16} rcx {r.Rcx:x16} rdx {r.Rdx:x16}");
        _ = text.AppendLine(culture, $"rsi {r.Rsi:x16} rdi {r.Rdi:x16} rbp {r.Rbp:x16} rsp {r.Rsp:x16}");
        _ = text.AppendLine(culture, $"r8  {r.R8:x16} r9  {r.R9:x16} r10 {r.R10:x16} r11 {r.R11:x16}");
        _ = text.AppendLine(culture, $"r12 {r.R12:x16} r13 {r.R13:x16} r14 {r.R14:x16} r15 {r.R15:x16}");
        _ = text.AppendLine(culture, $"cr0 {state.Cr0:x8} cr2 {state.Cr2:x16} cr3 {state.Cr3:x16} cr4 {(ulong)state.Cr4:x8}");
        _ = text.AppendLine(culture, $"efer {(ulong)state.Efer:x} cs {state.CodeSelector:x4} ss {state.StackSelector:x4}");
        _ = text.AppendLine(culture, $"fs base {kvm.Sregs.Fs.Base:x16} gs base {kvm.Sregs.Gs.Base:x16} kernel gs {state.KernelGsBase:x16}");
        _ = text.AppendLine(culture, $"gdt {state.GdtBase:x16} idt {state.IdtBase:x16} task {state.TaskBase:x16}");
        _ = text.AppendLine(culture, $"code at rip: {Convert.ToHexString(fetcher.Bytes(r.Rip))}");
        _ = text.AppendLine(culture, $"exits so far: {exits.Total()}; the last exceptions:");
        recent.Describe(text);
        return text.ToString();
    }
}
