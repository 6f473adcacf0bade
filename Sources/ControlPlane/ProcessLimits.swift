import CSocketSwitch
import Glibc
import SocketTable

/// Limits of this process, and so of the program that it becomes, under which the library does nothing.
package enum ProcessLimits {
    /// Below this hard limit the library takes no descriptor: such a program counts its own.
    package static let leastDescriptors: UInt64 = 1024

    /// Why a program would stay on TCP; nil: no limit speaks against it.
    package static var obstacle: String? {
        var files = rlimit()
        if ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), nil, &files) == 0, UInt64(files.rlim_max) < leastDescriptors {
            return "may open \(files.rlim_max) files at most (`ulimit -Hn`), and the switch takes none below \(leastDescriptors); it stays on TCP"
        }
        var size = rlimit()
        if ss_sys_prlimit(Int32(RLIMIT_FSIZE.rawValue), nil, &size) == 0, size.rlim_cur < rlim_t(FamilyArena.bytes) {
            return "may not make files of \(FamilyArena.bytes >> 20) MiB (`ulimit -f`), as the switch's memory is one; it stays on TCP"
        }
        return nil
    }
}
