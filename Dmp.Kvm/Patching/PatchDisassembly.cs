using System.Collections.Immutable;
using System.Globalization;
using Dmp.Kvm.Memory;
using Iced.Intel;

namespace Dmp.Kvm.Patching;

/// <summary>An instruction as people read it.</summary>
/// <param name="Address">Its address.</param>
/// <param name="Bytes">Its bytes in hexadecimal, a space between them; "??" for one that differs from run to run.</param>
/// <param name="Text">Its text.</param>
public sealed record DisassembledInstruction(ulong Address, string Bytes, string Text);

/// <summary>
/// What a patch changes, as people read it: made from the patch's plan alone, without a guest. Pure.
/// </summary>
public static class PatchDisassembly
{
    private const int DecoderBits = 64;
    private const int OperandColumn = 8;
    private const string NotAnInstruction = "(bad)";
    private const string CutOff = "(cut off)";

    /// <summary>Where implants are shown: a guest has them somewhere behind this address, in each run elsewhere.</summary>
    public static ulong ImplantBase => MachineLayout.ArenaBase;

    /// <summary>Disassembles code.</summary>
    /// <param name="address">Where it runs.</param>
    /// <param name="bytes">Its bytes.</param>
    /// <param name="symbol">Names addresses in operands; null for those without a name.</param>
    /// <returns>One line for each instruction; together they have all the bytes.</returns>
    public static ImmutableArray<DisassembledInstruction> Lines(
        ulong address, ReadOnlySpan<byte> bytes, Func<ulong, string?> symbol)
    {
        ArgumentNullException.ThrowIfNull(symbol);
        var formatter = new IntelFormatter(new FormatterOptions
        {
            FirstOperandCharIndex = OperandColumn,
            HexPrefix = "0x",
            HexSuffix = "",
            UppercaseHex = false,
            SpaceAfterOperandSeparator = true,
        }, new Names(symbol));
        var output = new StringOutput();
        var lines = ImmutableArray.CreateBuilder<DisassembledInstruction>();
        Decoder decoder = Decoder.Create(DecoderBits, new ByteArrayCodeReader(bytes.ToArray()), address);
        while (decoder.IP < address + (ulong)bytes.Length)
        {
            decoder.Decode(out Instruction instruction);
            if (!instruction.IsInvalid)
            {
                formatter.Format(instruction, output);
            }

            string text = instruction.IsInvalid
                ? decoder.LastError == DecoderError.NoMoreBytes ? CutOff : NotAnInstruction
                : output.ToStringAndReset();
            lines.Add(new DisassembledInstruction(
                instruction.IP,
                Hexadecimal(bytes.Slice((int)(instruction.IP - address), instruction.Length)),
                text));
        }

        return lines.ToImmutable();
    }

    /// <summary>What stands in a plan's window when the patch is in force.</summary>
    /// <param name="plan">The plan.</param>
    /// <param name="symbol">Names addresses in operands; null for those without a name.</param>
    public static ImmutableArray<DisassembledInstruction> Window(PatchPlan plan, Func<ulong, string?> symbol)
    {
        ArgumentNullException.ThrowIfNull(plan);
        ArgumentNullException.ThrowIfNull(symbol);
        int length = plan.Springboard is null ? ImplantEncoder.JumpLength : ImplantEncoder.ShortJumpLength;
        return
        [
            plan.Springboard is { } springboard
                ? new DisassembledInstruction(
                    plan.Window,
                    Hexadecimal(ImplantEncoder.ShortJump(plan.Window, plan.Original.AsSpan(), springboard.Address).AsSpan(0, length)),
                    "jmp     springboard")
                : LongJump(plan.Window),
            .. Lines(
                plan.Window + (ulong)length,
                ImplantEncoder.Behind(plan.Window, plan.Original.AsSpan(), length).AsSpan(length),
                symbol),
        ];
    }

    /// <summary>What stands in a plan's springboard without the patch: no code, whatever it reads like; empty when it has none.</summary>
    /// <param name="plan">The plan.</param>
    public static ImmutableArray<DisassembledInstruction> Padding(PatchPlan plan)
    {
        ArgumentNullException.ThrowIfNull(plan);
        return plan.Springboard is { } springboard
            ? [new DisassembledInstruction(springboard.Address, Hexadecimal(springboard.Original.AsSpan()), "(padding)")]
            : [];
    }

    /// <summary>What stands in a plan's springboard when the patch is in force; empty when it has none.</summary>
    /// <param name="plan">The plan.</param>
    public static ImmutableArray<DisassembledInstruction> Springboard(PatchPlan plan)
    {
        ArgumentNullException.ThrowIfNull(plan);
        return plan.Springboard is { } springboard ? [LongJump(springboard.Address)] : [];
    }

    /// <summary>Makes the implant of a plan again, at <see cref="ImplantBase"/>, and disassembles it.</summary>
    /// <param name="plan">The plan.</param>
    /// <param name="symbol">Names guest addresses in operands; fields that implants share with the VMM have their own names.</param>
    /// <param name="reason">Why it cannot be made: then it is no longer what this version of Dmp would make.</param>
    /// <returns>Empty when it cannot be made.</returns>
    public static ImmutableArray<DisassembledInstruction> Implant(PatchPlan plan, Func<ulong, string?> symbol, out string reason)
    {
        ArgumentNullException.ThrowIfNull(plan);
        ArgumentNullException.ThrowIfNull(symbol);
        if (plan.Original.IsEmpty)
        {
            reason = "the window has no bytes";
            return [];
        }

        ImmutableArray<TemplateUse> known = new TemplateSet(new TemplateHost(FsGsBase: true), ImmutableHashSet<string>.Empty).Uses;
        if (plan.Templates.FirstOrDefault(use => !known.Contains(use)) is { } other)
        {
            reason = known.FirstOrDefault(use => use.Name == other.Name) is { } now
                ? $"template {other.Name} is version {now.Version} now, the patch was made by version {other.Version}"
                : $"there is no template {other.Name} any more";
            return [];
        }

        // The set that the plan was made with: without what was switched off then, on a host like that one.
        ImmutableHashSet<string> unused = [.. known.Select(use => use.Name).Except(plan.Templates.Select(use => use.Name))];
        ImmutableArray<Instruction> window = PatchEngine.WindowInstructions(plan);
        foreach (bool fsGsBase in (bool[])[true, false])
        {
            var templates = new TemplateSet(new TemplateHost(fsGsBase), unused);
            IEnumerable<TemplateUse> uses = window.Select(instruction => templates.Find(instruction)).OfType<ImplantTemplate>()
                .Select(TemplateSet.Use);
            if (window.IsEmpty || !uses.SequenceEqual(plan.Templates))
            {
                continue;
            }

            return ImplantEncoder.Encode(window, templates, ImplantBase, out reason) is { } implant
                ? Lines(implant.Address, implant.Code.AsSpan(), address => Shared(address) ?? symbol(address))
                : [];
        }

        reason = "its templates do not fit its bytes";
        return [];
    }

    // Where the implant lies is decided anew in each run.
    private static DisassembledInstruction LongJump(ulong address) => new(address, "e9 ?? ?? ?? ??", "jmp     implant");

    private static string Hexadecimal(ReadOnlySpan<byte> bytes) =>
        string.Join(' ', bytes.ToArray().Select(value => value.ToString("x2", CultureInfo.InvariantCulture)));

    /// <summary>Name of what implants share with the VMM.</summary>
    private static string? Shared(ulong address)
    {
        if (address is MachineLayout.UserGate or MachineLayout.RootGate)
        {
            return address == MachineLayout.UserGate ? "monitor.UserGate" : "monitor.RootGate";
        }

        ulong field = (address - MachineLayout.DevicePageAddress) / sizeof(ulong);
        if (field < (ulong)DevicePageField.Count)
        {
            return $"devices.{(DevicePageField)field}";
        }

        field = (address - MachineLayout.VcpuPageAddress) / sizeof(ulong);
        if (field >= (ulong)VcpuPageField.Count)
        {
            return null;
        }

        // Only the array of roots has fields without a name of their own.
        string name = field >= (ulong)VcpuPageField.Roots
            ? FormattableString.Invariant($"{VcpuPageField.Roots}[{field - (ulong)VcpuPageField.Roots}]")
            : ((VcpuPageField)field).ToString();
        return $"vcpu.{name}";
    }

    private sealed class Names(Func<ulong, string?> symbol) : ISymbolResolver
    {
        public bool TryGetSymbol(
            in Instruction instruction, int operand, int instructionOperand, ulong address, int addressSize, out SymbolResult result)
        {
            string? name = symbol(address);
            result = name is null ? default : new SymbolResult(address, name);
            return name is not null;
        }
    }
}
