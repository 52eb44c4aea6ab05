using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Dmp.Host.Terminal;

/// <summary>
/// The terminal on stdin in raw mode: every key goes to the guest, Ctrl-c too. Restored when disposed, and when the process ends in
/// any other way that lets code run.
/// </summary>
internal sealed partial class RawTerminal : IDisposable
{
    private const int StandardInput = 0;
    private const int ApplyNow = 0;

    // termios(3): output processing. Kept, or our own lines on stderr would come out as stairs.
    private const uint OutputProcessing = 1;

    private readonly TerminalSettings before;
    private readonly TerminalSettings raw;
    private readonly PosixSignalRegistration? continued;
    private int restored;

    private RawTerminal(in TerminalSettings before)
    {
        this.before = before;
        raw = before;
        MakeRaw(ref raw);
        raw.OutputFlags |= before.OutputFlags & OutputProcessing;
        AppDomain.CurrentDomain.ProcessExit += OnExit;
        AppDomain.CurrentDomain.UnhandledException += OnUnhandled;

        // A shell that stopped us with SIGSTOP has made the terminal its own in between.
        continued = OperatingSystem.IsLinux() ? PosixSignalRegistration.Create(PosixSignal.SIGCONT, _ => Apply(raw)) : null;
        Apply(raw);
    }

    /// <summary>Enters raw mode.</summary>
    /// <returns>What restores the terminal, or null when stdin is not one.</returns>
    public static RawTerminal? Enter() => GetSettings(StandardInput, out TerminalSettings now) == 0 ? new RawTerminal(now) : null;

    /// <inheritdoc />
    public void Dispose()
    {
        if (Interlocked.Exchange(ref restored, 1) == 0)
        {
            continued?.Dispose();
            AppDomain.CurrentDomain.ProcessExit -= OnExit;
            AppDomain.CurrentDomain.UnhandledException -= OnUnhandled;
            Apply(before);
        }
    }

    private void OnExit(object? sender, EventArgs arguments) => Apply(before);

    private void OnUnhandled(object sender, UnhandledExceptionEventArgs arguments) => Apply(before);

    // Fails only when the terminal is gone, and then there is nothing to set.
    private static void Apply(TerminalSettings settings) => _ = SetSettings(StandardInput, ApplyNow, settings);

    [LibraryImport("libc", EntryPoint = "tcgetattr")]
    private static partial int GetSettings(int descriptor, out TerminalSettings settings);

    [LibraryImport("libc", EntryPoint = "tcsetattr")]
    private static partial int SetSettings(int descriptor, int actions, in TerminalSettings settings);

    [LibraryImport("libc", EntryPoint = "cfmakeraw")]
    private static partial void MakeRaw(ref TerminalSettings settings);

    /// <summary>struct termios of the C library on x86-64 Linux.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct TerminalSettings
    {
        public uint InputFlags;
        public uint OutputFlags;
        public uint ControlFlags;
        public uint LocalFlags;
        public byte LineDiscipline;
        public ControlCharacters Characters;
        public uint InputSpeed;
        public uint OutputSpeed;
    }

    [InlineArray(Count)]
    private struct ControlCharacters
    {
        private const int Count = 32;
        private byte first;
    }
}
