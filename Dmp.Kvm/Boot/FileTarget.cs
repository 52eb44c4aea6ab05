namespace Dmp.Kvm.Boot;

/// <summary>The file that a path leads to: /boot/vmlinuz is a symbolic link on many systems, and a link has a length of its own.</summary>
internal static class FileTarget
{
    /// <summary>Follows links to their end; a path that is no link, or a broken one, stays as it is.</summary>
    internal static FileInfo Of(string path)
    {
        FileInfo info = new(path);
        return info.Exists && info.ResolveLinkTarget(returnFinalTarget: true) is FileInfo target ? target : info;
    }
}
