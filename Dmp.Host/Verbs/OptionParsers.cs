using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;

namespace Dmp.Host.Verbs;

/// <summary>Options whose values have a form of their own. Each says in one line what it expects.</summary>
internal static class OptionParsers
{
    private const ulong MemoryUnit = 2UL << 20;

    /// <summary>A size of guest RAM.</summary>
    public static Option<ulong> Memory(string name, string description) => Make(
        name,
        description,
        "a size such as 512M or 1G, a multiple of 2M",
        text => MemorySize.TryParse(text, out ulong bytes) && bytes > 0 && bytes % MemoryUnit == 0 ? bytes : (ulong?)null);

    /// <summary>A time in seconds.</summary>
    public static Option<TimeSpan?> Seconds(string name, string description) => MakeOptional(
        name,
        description,
        "a number of seconds above zero",
        text => double.TryParse(text, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out double seconds)
            && seconds > 0 && seconds < int.MaxValue / 1000
                ? TimeSpan.FromSeconds(seconds)
                : (TimeSpan?)null);

    /// <summary>An I/O port, decimal or 0x and hexadecimal.</summary>
    public static Option<ushort?> Port(string name, string description) => MakeOptional(
        name,
        description,
        "an I/O port such as 0xf4",
        text => text.StartsWith("0x", StringComparison.OrdinalIgnoreCase)
            ? ushort.TryParse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out ushort hex) ? hex : null
            : ushort.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out ushort number) ? number : (ushort?)null);

    /// <summary>A number within bounds.</summary>
    public static Option<int?> Number(string name, string description, int least, int most) => MakeOptional(
        name,
        description,
        string.Create(CultureInfo.InvariantCulture, $"a number from {least} to {most}"),
        text => int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int number)
            && number >= least && number <= most ? number : (int?)null);

    private static Option<T> Make<T>(string name, string description, string expected, Func<string, T?> parse)
        where T : struct =>
        new(name) { Description = description, CustomParser = result => Parse(result, name, expected, parse) ?? default };

    private static Option<T?> MakeOptional<T>(string name, string description, string expected, Func<string, T?> parse)
        where T : struct =>
        new(name) { Description = description, CustomParser = result => Parse(result, name, expected, parse) };

    private static T? Parse<T>(ArgumentResult result, string name, string expected, Func<string, T?> parse)
        where T : struct
    {
        string text = result.Tokens[0].Value;
        T? value = parse(text);
        if (value is null)
        {
            result.AddError($"{name} {text} is not {expected}");
        }

        return value;
    }
}
