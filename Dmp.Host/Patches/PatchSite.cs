using System.Collections.Immutable;
using System.Globalization;
using System.Text.Json;
using Dmp.Actors.Journal;

namespace Dmp.Host.Patches;

/// <summary>A site of a kernel in a journal, with all the windows that were ever patched for it.</summary>
/// <param name="KernelId">The kernel.</param>
/// <param name="Kernel">What the journal has of it.</param>
/// <param name="Offset">The site's offset from the kernel's base, in bytes.</param>
/// <param name="Windows">Its windows as the journal lists them; at least one, which has no patch if there never was one.</param>
internal sealed record PatchSite(string KernelId, KernelHistory Kernel, long Offset, ImmutableArray<JournaledSite> Windows)
{
    /// <summary>The window that says how the site stands: one in force, if there is any.</summary>
    public JournaledSite Main =>
        Windows.FirstOrDefault(window => window.State is SiteState.Disabled or SiteState.Applied) ?? Windows[0];

    /// <summary>Its address in the guest; null when the journal does not say where the kernel lay.</summary>
    public ulong? Address => Kernel.State.KernelBase == 0 ? null : unchecked(Kernel.State.KernelBase + (ulong)Offset);

    /// <summary>Its address, or else its offset with a sign.</summary>
    public string Name => Address is { } address ? Hexadecimal(address) : OffsetText(Offset);

    /// <summary>symbol+offset, or null.</summary>
    public string? Symbol => Windows.Select(window => window.Entry?.Patch.Symbol).Append(Main.Refusal?.Symbol)
        .FirstOrDefault(symbol => !string.IsNullOrEmpty(symbol));

    /// <summary>The templates of its patch, "+" between them; null without one.</summary>
    public string? Template => Main.Entry is { } entry ? string.Join('+', entry.Patch.Templates.Select(use => use.Name)) : null;

    /// <summary>Its state, as lists and scripts spell it.</summary>
    public string State => StateName(Main.State);

    /// <summary>All sites of a kernel, in the order of their offsets.</summary>
    public static ImmutableArray<PatchSite> Of(string kernelId, KernelHistory kernel) =>
    [
        .. kernel.State.Sites.GroupBy(site => site.SiteOffset)
            .Select(group => new PatchSite(kernelId, kernel, group.Key, [.. group])),
    ];

    /// <summary>A state, as lists and scripts spell it.</summary>
    public static string StateName(SiteState state) => JsonNamingPolicy.SnakeCaseLower.ConvertName(state.ToString());

    /// <summary>An address as lists show it.</summary>
    public static string Hexadecimal(ulong value) => string.Create(CultureInfo.InvariantCulture, $"0x{value:x}");

    /// <summary>An offset as lists show it.</summary>
    public static string OffsetText(long offset) =>
        $"{(offset < 0 ? '-' : '+')}{Hexadecimal(offset < 0 ? unchecked(0UL - (ulong)offset) : (ulong)offset)}";
}
