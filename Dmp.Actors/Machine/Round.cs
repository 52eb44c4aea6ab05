using System.Collections.Immutable;

namespace Dmp.Actors.Machine;

/// <summary>
/// A question to several children and who has answered it. Pure: the supervisor sends the questions and keeps the time.
/// </summary>
/// <param name="Id">Request id of the question.</param>
/// <param name="Awaited">Who has not answered.</param>
/// <param name="Agreed">Who has done what was asked.</param>
internal sealed record Round(long Id, ImmutableSortedSet<int> Awaited, ImmutableSortedSet<int> Agreed)
{
    /// <summary>A round that has just begun.</summary>
    public static Round Of(long id, IEnumerable<int> asked) => new(id, [.. asked], []);

    /// <summary>Whether everybody has answered.</summary>
    public bool Complete => Awaited.IsEmpty;

    /// <summary>Takes an answer.</summary>
    public Round Answered(int who, bool agreed) =>
        new(Id, Awaited.Remove(who), agreed && Awaited.Contains(who) ? Agreed.Add(who) : Agreed);
}
