import CInterposer
import CSocketSwitch

// Descriptors that travel in messages of Unix sockets. The messages themselves are libc's.

@inline(never)
func passingSendMessage(_ fd: Int32, _ message: UnsafePointer<msghdr>?, _ flags: Int32) -> Int {
    if let message { switchWillSend(message) }
    return ss_real.sendmsg(fd, message, flags)
}

@inline(never)
func passingSendMessages(_ fd: Int32, _ list: UnsafeMutablePointer<mmsghdr>?, _ count: UInt32, _ flags: Int32) -> Int32 {
    if let list {
        var index = 0
        while index < Int(min(count, 1024)) {
            switchWillSend(UnsafeRawPointer(list + index).assumingMemoryBound(to: msghdr.self))
            index &+= 1
        }
    }
    return ss_real.sendmmsg(fd, list, count, flags)
}

@inline(__always)
func passingReceiveMessage(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>?, _ flags: Int32) -> Int {
    let result = ss_real.recvmsg(fd, message, flags)
    // What was received was written by the kernel: it can be read.
    if result >= 0, let message, message.pointee.msg_controllen != 0 { noteReceived(message) }
    return result
}

func passingReceiveMessages(
    _ fd: Int32, _ list: UnsafeMutablePointer<mmsghdr>?, _ count: UInt32, _ flags: Int32,
    _ timeout: UnsafeMutablePointer<timespec>?
) -> Int32 {
    let result = ss_real.recvmmsg(fd, list, count, flags, timeout)
    if result > 0, let list {
        var index = 0
        while index < Int(result) {
            if list[index].msg_hdr.msg_controllen != 0 { noteReceived(&list[index].msg_hdr) }
            index &+= 1
        }
    }
    return result
}

@inline(never)
private func noteReceived(_ message: UnsafePointer<msghdr>) { switchHasReceived(message) }

@c(pidfd_getfd) public func interposedPidfdGetfd(_ process: Int32, _ fd: Int32, _ flags: UInt32) -> Int32 {
    let taken = ss_real.pidfd_getfd(process, fd, flags)
    if taken >= 0 { switchHasTaken(taken) }
    return taken
}
