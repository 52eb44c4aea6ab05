namespace Dmp.Kvm.Cpu;

/// <summary>An exception that the guest is to get.</summary>
/// <param name="Vector">Which.</param>
/// <param name="ErrorCode">Its error code, if the vector has one.</param>
/// <param name="Address">CR2, for a page fault.</param>
internal readonly record struct GuestFault(ExceptionVector Vector, uint ErrorCode = 0, ulong Address = 0)
{
    /// <summary>#GP(0).</summary>
    internal static GuestFault GeneralProtection => new(ExceptionVector.GeneralProtection);

    /// <summary>#UD.</summary>
    internal static GuestFault InvalidOpcode => new(ExceptionVector.InvalidOpcode);

    /// <summary>Whether the vector pushes an error code (AMD APM vol. 2, table 8-1).</summary>
    internal bool HasErrorCode => Vector is ExceptionVector.DoubleFault or ExceptionVector.InvalidTss
        or ExceptionVector.SegmentNotPresent or ExceptionVector.Stack or ExceptionVector.GeneralProtection
        or ExceptionVector.PageFault or ExceptionVector.AlignmentCheck;

    /// <summary>Whether it is contributory in the sense of AMD APM vol. 2, table 8-3.</summary>
    internal bool IsContributory => Vector is ExceptionVector.DivideError or ExceptionVector.InvalidTss
        or ExceptionVector.SegmentNotPresent or ExceptionVector.Stack or ExceptionVector.GeneralProtection;
}
