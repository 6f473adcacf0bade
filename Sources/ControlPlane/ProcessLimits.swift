import CSocketSwitch
import Glibc
import SocketTable

/// Limits of this process, and so of the program that it becomes, under which the library does nothing.
package enum ProcessLimits {
    /// Why a program would stay on TCP; nil: no limit speaks against it.
    package static var obstacle: String? {
        var files = rlimit()
        if ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), nil, &files) == 0, files.rlim_max < rlim_t(leastDescriptorLimit),
            files.rlim_cur == files.rlim_max  // else the library takes numbers above the soft one
        {
            return "may open \(files.rlim_max) files at most (`ulimit -Hn`), and the switch takes none below \(leastDescriptorLimit); it stays on TCP"
        }
        if FamilyArena.exceedsFileSizeLimit {
            return "may not make files of \(FamilyArena.bytes >> 20) MiB (`ulimit -f`), as the switch's memory is one; it stays on TCP"
        }
        return nil
    }
}
