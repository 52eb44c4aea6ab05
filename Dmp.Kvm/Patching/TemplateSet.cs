using System.Collections.Immutable;
using Iced.Intel;

namespace Dmp.Kvm.Patching;

/// <summary>The templates of a machine: all that this assembly has, but those that are switched off. Pure.</summary>
internal sealed class TemplateSet
{
    private static readonly ImmutableArray<ImplantTemplate> All =
    [
        .. typeof(ImplantTemplate).Assembly.GetTypes()
            .Where(type => type.IsSubclassOf(typeof(ImplantTemplate)))
            .Select(type => (ImplantTemplate)Activator.CreateInstance(type)!)
            .OrderBy(template => template.Name, StringComparer.Ordinal),
    ];

    private readonly TemplateHost host;
    private readonly ImmutableArray<ImplantTemplate> enabled;

    /// <summary>Creates the set.</summary>
    /// <param name="host">What the host can do.</param>
    /// <param name="disabled">Names of templates that are switched off.</param>
    /// <exception cref="UnusableInputException">There is no template of such a name.</exception>
    internal TemplateSet(TemplateHost host, IReadOnlySet<string> disabled)
    {
        this.host = host;
        foreach (string name in disabled)
        {
            if (!All.Any(template => template.Name == name))
            {
                throw new UnusableInputException(
                    $"there is no template '{name}'; there are {string.Join(", ", All.Select(template => template.Name))}.");
            }
        }

        enabled = [.. All.Where(template => !disabled.Contains(template.Name))];
    }

    /// <summary>Names and versions of the templates in use.</summary>
    internal ImmutableArray<TemplateUse> Uses => [.. enabled.Select(Use)];

    /// <summary>The template for an instruction, or null.</summary>
    internal ImplantTemplate? Find(in Instruction instruction)
    {
        foreach (ImplantTemplate template in enabled)
        {
            if (template.Matches(instruction, host))
            {
                return template;
            }
        }

        return null;
    }

    /// <summary>A template as plans name it.</summary>
    internal static TemplateUse Use(ImplantTemplate template) => new(template.Name, template.Version);
}
