using System.Collections.Immutable;
using System.Globalization;
using Dmp.Kvm;

namespace Dmp.Host.Patches;

/// <summary>Finds the site that a user means. Pure.</summary>
internal static class SiteSelector
{
    private const int NamedCandidates = 3;

    /// <summary>Finds a site.</summary>
    /// <param name="sites">All sites.</param>
    /// <param name="text">
    /// An address (0x is optional), an offset with a sign, a symbol with or without an offset; also of any byte in a patched window; or
    /// the beginning of one of them, if no other site has the same.
    /// </param>
    /// <exception cref="UnusableInputException">There is none, or more than one.</exception>
    public static PatchSite Find(ImmutableArray<PatchSite> sites, string text)
    {
        string wanted = text.Trim();

        // The closest meaning that any site has: a site that is named in full is not ambiguous for being another one's beginning.
        Func<PatchSite, bool>[] meanings =
        [
            site => IsNamed(site, wanted),
            site => IsInWindow(site, wanted),
            site => IsBeginning(site, wanted),
        ];
        foreach (Func<PatchSite, bool> meaning in meanings)
        {
            ImmutableArray<PatchSite> found = wanted.Length == 0 ? [] : [.. sites.Where(meaning)];
            if (found.Length == 1)
            {
                return found[0];
            }

            if (found.Length > 1)
            {
                throw new UnusableInputException(Ambiguous(found, text));
            }
        }

        throw new UnusableInputException($"the journal has no site '{text}'; 'dmp patches list' shows those it has");
    }

    private static string Ambiguous(ImmutableArray<PatchSite> found, string text)
    {
        bool oneKernel = found.All(site => site.KernelId == found[0].KernelId);
        IEnumerable<string> names = found.Take(NamedCandidates)
            .Select(site => oneKernel ? $"{site.Name} {site.Symbol}".TrimEnd() : $"{site.Name} of kernel {site.KernelId}");
        string more = found.Length > NamedCandidates ? $" and {found.Length - NamedCandidates} more" : "";
        string remedy = oneKernel ? "say more of it" : "name the kernel with --kernel-id";
        return $"'{text}' may be {found.Length} sites: {string.Join(", ", names)}{more}; {remedy}";
    }

    private static bool IsNamed(PatchSite site, string wanted) =>
        (TryAddress(wanted, out ulong address) && site.Address == address)
        || (TryOffset(wanted, out long offset) && site.Offset == offset)
        || (TrySymbol(wanted, out string name, out ulong into) && TrySymbol(site.Symbol, out string has, out ulong at)
            && name == has && into == at);

    private static bool IsInWindow(PatchSite site, string wanted)
    {
        long offset;
        if (TryAddress(wanted, out ulong address) && site.Address is not null)
        {
            offset = unchecked((long)(address - site.Kernel.State.KernelBase));
        }
        else if (TrySymbol(wanted, out string name, out ulong into) && TrySymbol(site.Symbol, out string has, out ulong at) && name == has)
        {
            offset = unchecked(site.Offset + (long)(into - at));
        }
        else if (!TryOffset(wanted, out offset))
        {
            return false;
        }

        return site.Windows.Any(window => window.Entry is { } entry && entry.Patch.Covers(offset));
    }

    private static bool IsBeginning(PatchSite site, string wanted)
    {
        string digits = wanted.StartsWith("0x", StringComparison.OrdinalIgnoreCase) ? wanted[2..] : wanted;
        return (digits.Length > 0 && site.Address is not null
                && site.Name[2..].StartsWith(digits, StringComparison.OrdinalIgnoreCase))
            || (wanted[0] is '+' or '-' && PatchSite.OffsetText(site.Offset).StartsWith(wanted, StringComparison.OrdinalIgnoreCase))
            || site.Symbol?.StartsWith(wanted, StringComparison.Ordinal) == true;
    }

    private static bool TryAddress(string text, out ulong address) => ulong.TryParse(
        text.StartsWith("0x", StringComparison.OrdinalIgnoreCase) ? text.AsSpan(2) : text,
        NumberStyles.AllowHexSpecifier,
        CultureInfo.InvariantCulture,
        out address);

    // The sign tells an offset from an address.
    private static bool TryOffset(string text, out long offset)
    {
        offset = 0;
        if (text.Length < 2 || text[0] is not ('+' or '-') || !TryAddress(text[1..], out ulong value))
        {
            return false;
        }

        offset = unchecked((long)(text[0] == '-' ? 0UL - value : value));
        return true;
    }

    private static bool TrySymbol(string? text, out string name, out ulong into)
    {
        into = 0;
        string[] parts = (text ?? "").Split('+');
        name = parts[0];
        return name.Length > 0 && (parts.Length == 1 || (parts.Length == 2 && TryAddress(parts[1], out into)));
    }
}
