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
    fd = 0
    while fd < Int32(bitPattern: highestDescriptor.load()) {
        let kind = entryKind(descriptorEntry(fd))
        if kind == DescriptorKind.socket || kind == DescriptorKind.epollSet { clearDescriptorEntry(fd) }
        fd &+= 1
    }
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
        let count = ss_sys_read(Int32(opened), text, 4096)
        // "Seccomp:", a tab, the mode: 0 is none.
        let key: StaticString = "\nSeccomp:\t"
        var at = 0
        while at &+ key.utf8CodeUnitCount < count {
            if memcmp(text + at, key.utf8Start, key.utf8CodeUnitCount) == 0 {
                return text.load(fromByteOffset: at &+ key.utf8CodeUnitCount, as: UInt8.self) != UInt8(ascii: "0")
            }
            at &+= 1
        }
        return false
    }
}
