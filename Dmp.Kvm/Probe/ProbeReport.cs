namespace Dmp.Kvm.Probe;

/// <summary>One thing found out about this host's KVM.</summary>
/// <param name="Name">What was asked, snake_case.</param>
/// <param name="Value">The answer.</param>
/// <param name="Consequence">What follows from it.</param>
public sealed record ProbeFinding(string Name, string Value, string Consequence);

/// <summary>What this host's KVM can do, measured.</summary>
/// <param name="Findings">The answers, in the order they were asked.</param>
/// <param name="Strategies">What the monitor will do because of them.</param>
public sealed record ProbeReport(IReadOnlyList<ProbeFinding> Findings, IReadOnlyList<string> Strategies);
