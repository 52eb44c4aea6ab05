using System.Runtime.InteropServices;

namespace Dmp.Kvm.Interop;

/// <summary>The system calls that Dmp makes, as libc offers them on x86-64 Linux.</summary>
internal static unsafe partial class Libc
{
    internal const int OpenReadWrite = 2;
    internal const int OpenCloseOnExec = 0x80000;
    internal const int ProtectionRead = 1;
    internal const int ProtectionWrite = 2;
    internal const int ProtectionExecute = 4;
    internal const int MapShared = 1;
    internal const int MapPrivate = 2;
    internal const int MapAnonymous = 0x20;
    internal const int MapNoReserve = 0x4000;
    internal const uint MemfdCloseOnExec = 1;
    internal const int SignalKick = 10; // SIGUSR1: the .NET runtime does not use it
    internal const int SignalMaskBlock = 0;
    internal const int SignalEventThreadId = 4;
    internal const int ClockMonotonic = 1;
    internal const int TimerAbsolute = 1;
    internal const int Eperm = 1;
    internal const int Enoent = 2;
    internal const int Eintr = 4;
    internal const int Eagain = 11;
    internal const int Eacces = 13;

    /// <summary>Bytes of a kernel signal set (glibc's own sigset_t is larger).</summary>
    internal const int KernelSignalSetSize = 8;

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8, EntryPoint = "open")]
    internal static partial int Open(string path, int flags);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "close")]
    internal static partial int Close(int descriptor);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "ioctl")]
    internal static partial int Ioctl(int descriptor, nuint request, nint argument);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "ioctl")]
    internal static partial int Ioctl(int descriptor, nuint request, void* argument);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "mmap")]
    internal static partial nint Map(nint address, nuint length, int protection, int flags, int descriptor, long offset);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "munmap")]
    internal static partial int Unmap(nint address, nuint length);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8, EntryPoint = "memfd_create")]
    internal static partial int CreateMemoryFile(string name, uint flags);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "ftruncate")]
    internal static partial int Truncate(int descriptor, long length);

    [LibraryImport("libc", EntryPoint = "gettid")]
    internal static partial int GetThreadId();

    [LibraryImport("libc", EntryPoint = "getpid")]
    internal static partial int GetProcessId();

    [LibraryImport("libc", SetLastError = true, EntryPoint = "tgkill")]
    internal static partial int SignalThread(int process, int thread, int signal);

    [LibraryImport("libc", EntryPoint = "pthread_sigmask")]
    internal static partial int SetThreadSignalMask(int how, ulong* set, ulong* old);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "sigtimedwait")]
    internal static partial int WaitForSignal(ulong* set, void* info, TimeSpec* timeout);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "timer_create")]
    internal static partial int CreateTimer(int clock, SignalEvent* signalEvent, nint* timer);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "timer_settime")]
    internal static partial int SetTimer(nint timer, int flags, TimerSpec* value, TimerSpec* old);

    [LibraryImport("libc", SetLastError = true, EntryPoint = "timer_delete")]
    internal static partial int DeleteTimer(nint timer);

    /// <summary>glibc's sigset_t is 128 bytes; the mask functions read that much.</summary>
    internal static readonly int SignalSetWords = 128 / sizeof(ulong);

    [StructLayout(LayoutKind.Sequential)]
    internal struct TimeSpec
    {
        internal long Seconds;
        internal long Nanoseconds;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct TimerSpec
    {
        internal TimeSpec Interval;
        internal TimeSpec Value;
    }

    /// <summary>struct sigevent.</summary>
    [StructLayout(LayoutKind.Explicit, Size = 64)]
    internal struct SignalEvent
    {
        [FieldOffset(8)]
        internal int Signal;

        [FieldOffset(12)]
        internal int Notify;

        [FieldOffset(16)]
        internal int ThreadId;
    }
}
