import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

// A filter of system calls knows the calls that the program makes, not those that the library would make on its behalf:
// to make one may mean death. So a process that confines itself is left alone from then on.

/// The program is about to install a filter (seccomp). Every socket goes back to TCP, the kernel's epoll sets get the
/// program's own registrations again, and the table forgets everything but the library's own descriptors: each later call
/// is libc's.
package func switchBeforeSandbox() {
    let state = privateState
    if isForeignChild() { return }
    state.pointee.enabled = false
    defer { ss_give_signals_up() }
    let isActive = switchIsActive
    state.pointee.isConfined = true
    guard isActive else { return }
    var fd: Int32 = 0
    while fd < Int32(bitPattern: highestDescriptor.load()) {
        if let index = socketIndex(fd) {
            handOver(fd, index, to: .stranger)
            readinessLeaveToKernel(index)
        }
        fd &+= 1
    }
    forgetEntries { _ in true }
}

/// Whether this process ran under a filter before the library had anything to do. Asked of a file, since a filter may
/// forbid prctl.
func isConfinedFromOutside() -> Bool {
    let path: StaticString = "/proc/self/status"
    let opened = ss_sys_open_to_read(UnsafeRawPointer(path.utf8Start).assumingMemoryBound(to: CChar.self))
    guard opened >= 0 else { return false }
    defer { _ = ss_sys_close(Int32(opened)) }
    var storage = InlineArray<4096, UInt8>(repeating: 0)
    return withUnsafeMutablePointer(to: &storage) { pointer in
        let text = UnsafeMutableRawPointer(pointer)
        // "Seccomp:", a tab, the mode: 0 is none. The groups before it may fill many times the storage.
        let key: StaticString = "\nSeccomp:\t"
        let length = key.utf8CodeUnitCount &+ 1
        var kept = 0
        while true {
            let count = ss_sys_read(Int32(opened), text + kept, 4096 &- kept)
            if count <= 0 { return false }
            let end = kept &+ count
            var at = 0
            while at &+ length <= end {
                if memcmp(text + at, key.utf8Start, length &- 1) == 0 {
                    return text.load(fromByteOffset: at &+ length &- 1, as: UInt8.self) != UInt8(ascii: "0")
                }
                at &+= 1
            }
            // What may be the beginning of it.
            kept = end &- at
            memmove(text, text + at, kept)
        }
    }
}
