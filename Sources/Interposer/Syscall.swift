import CInterposer
import CSocketSwitch

/// syscall(): what it does to a socket of the switch goes where the named call goes. The program passes up to six machine
/// words; all six are taken, as libc does it. Results and errno have the form of the named calls.
@c(syscall) public func interposedSyscall(
    _ number: Int, _ a: Int, _ b: Int, _ c: Int, _ d: Int, _ e: Int, _ f: Int
) -> Int {
    // Others, futex above all, are many: they must not pay for a search.
    let call = Int32(truncatingIfNeeded: number)
    if call == SYS_futex { return ss_real.syscall(number, a, b, c, d, e, f) }
    let a = isSelect(call) ? selectLength(a, b, c, d) : a
    let arguments = SystemCallArguments(a: a, b: b, c: c, d: d, e: e, f: f)
    if arguments.isOfSwitch(call) { return arguments.perform(call) }
    return ss_real.syscall(number, a, b, c, d, e, f)
}

@inline(__always)
private func isSelect(_ call: Int32) -> Bool {
    #if arch(x86_64)
    if call == SYS_select { return true }
    #endif
    return call == SYS_pselect6
}

/// The first argument of select, and of pselect6.
private func selectLength(_ count: Int, _ read: Int, _ write: Int, _ except: Int) -> Int {
    Int(switchSelectLength(
        Int32(truncatingIfNeeded: count), UnsafeMutableRawPointer(bitPattern: read), UnsafeMutableRawPointer(bitPattern: write),
        UnsafeMutableRawPointer(bitPattern: except)))
}

private struct SystemCallArguments {
    let a, b, c, d, e, f: Int

    @inline(__always) private var fd: Int32 { Int32(truncatingIfNeeded: a) }
    @inline(__always) private var second: Int32 { Int32(truncatingIfNeeded: b) }
    @inline(__always) private var third: Int32 { Int32(truncatingIfNeeded: c) }
    @inline(__always) private var fourth: Int32 { Int32(truncatingIfNeeded: d) }

    private func pointer(_ word: Int) -> UnsafeMutableRawPointer? { UnsafeMutableRawPointer(bitPattern: word) }
    private func typed<T>(_ word: Int, _ type: T.Type) -> UnsafeMutablePointer<T>? { UnsafeMutablePointer(bitPattern: word) }

    /// Whether the call makes a socket, or is one that the switch must see and names one of its descriptors.
    @inline(never)
    func isOfSwitch(_ call: Int32) -> Bool {
        switch call {
        case SYS_socket, SYS_io_uring_setup, SYS_exit_group, SYS_close_range, SYS_epoll_create1, SYS_accept, SYS_accept4, SYS_execve,
            SYS_execveat, SYS_clone, SYS_clone3, SYS_seccomp, SYS_prctl, SYS_pidfd_getfd, SYS_sendmsg, SYS_sendmmsg, SYS_recvmsg,
            SYS_recvmmsg:
            return true
        case SYS_io_submit: return switchHasDescriptors
        case SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_recvfrom, SYS_sendto, SYS_preadv2, SYS_pwritev2, SYS_bind,
            SYS_listen, SYS_connect, SYS_shutdown,
            SYS_getsockopt, SYS_setsockopt, SYS_close, SYS_dup, SYS_fcntl, SYS_ioctl, SYS_epoll_pwait, SYS_epoll_pwait2:
            return descriptorEntry(fd) != 0
        case SYS_dup3, SYS_sendfile: return descriptorEntry(fd) | descriptorEntry(second) != 0
        case SYS_epoll_ctl, SYS_splice: return descriptorEntry(fd) | descriptorEntry(third) != 0
        case SYS_ppoll: return containsTracked(typed(a, pollfd.self), UInt(bitPattern: b))
        case SYS_pselect6: return containsTracked(fd, pointer(b), pointer(c), pointer(d))
        default:
            #if arch(x86_64)
            switch call {
            case SYS_epoll_create, SYS_fork, SYS_vfork: return true
            case SYS_epoll_wait: return descriptorEntry(fd) != 0
            case SYS_dup2: return descriptorEntry(fd) | descriptorEntry(second) != 0
            case SYS_poll: return containsTracked(typed(a, pollfd.self), UInt(bitPattern: b))
            case SYS_select: return containsTracked(fd, pointer(b), pointer(c), pointer(d))
            default: return false
            }
            #else
            return false
            #endif
        }
    }

    @inline(never)
    func perform(_ call: Int32) -> Int {
        switch call {
        case SYS_socket: return Int(interposedSocket(fd, second, third))
        case SYS_io_uring_setup:
            switchRingIsMade()
            return ss_real.syscall(Int(call), a, b, c, d, e, f)
        case SYS_exit_group: interposedExit(fd)
        case SYS_execve, SYS_execveat:
            // The environment stays the program's: the next image does not learn of what it inherits.
            _ = switchBeforeExec(nil, 0)
            let result = ss_real.syscall(Int(call), a, b, c, d, e, f)
            switchExecFailed()
            return result
        case SYS_clone, SYS_clone3:
            if makesProcess(call) { return fork(call) }
            if lendsMemory(call) { ss_lend_memory(1) }
            return ss_real.syscall(Int(call), a, b, c, d, e, f)
        case SYS_seccomp, SYS_prctl:
            // seccomp's operations 0 and 1, and PR_SET_SECCOMP, confine.
            if call == SYS_seccomp ? a == 0 || a == 1 : a == 22 { switchBeforeSandbox() }
            return ss_real.syscall(Int(call), a, b, c, d, e, f)
        case SYS_pidfd_getfd: return Int(interposedPidfdGetfd(fd, second, UInt32(truncatingIfNeeded: c)))
        case SYS_close_range: return Int(interposedCloseRange(UInt32(truncatingIfNeeded: a), UInt32(truncatingIfNeeded: b), third))
        case SYS_io_submit: return submit(call)
        case SYS_epoll_create1: return Int(interposedEpollCreate1(fd))
        case SYS_accept: return Int(interposedAccept(fd, pointer(b), typed(c, UInt32.self)))
        case SYS_accept4: return Int(interposedAccept4(fd, pointer(b), typed(c, UInt32.self), fourth))
        case SYS_read: return interposedRead(fd, pointer(b), c)
        case SYS_write: return interposedWrite(fd, pointer(b), c)
        case SYS_readv: return interposedReadv(fd, typed(b, iovec.self), third)
        case SYS_writev: return interposedWritev(fd, typed(b, iovec.self), third)
        case SYS_recvfrom: return interposedRecvfrom(fd, pointer(b), c, fourth, pointer(e), typed(f, UInt32.self))
        case SYS_sendto: return interposedSendto(fd, pointer(b), c, fourth, pointer(e), UInt32(truncatingIfNeeded: f))
        case SYS_recvmsg: return interposedRecvmsg(fd, typed(b, msghdr.self), third)
        case SYS_sendmsg: return interposedSendmsg(fd, typed(b, msghdr.self), third)
        case SYS_recvmmsg:
            return Int(interposedRecvmmsg(fd, typed(b, mmsghdr.self), UInt32(truncatingIfNeeded: c), fourth, typed(e, timespec.self)))
        case SYS_sendmmsg: return Int(interposedSendmmsg(fd, typed(b, mmsghdr.self), UInt32(truncatingIfNeeded: c), fourth))
        // The offset is in two halves, the first of which is all of it.
        case SYS_preadv2: return interposedPreadv2(fd, typed(b, iovec.self), third, Int64(d), Int32(truncatingIfNeeded: f))
        case SYS_pwritev2: return interposedPwritev2(fd, typed(b, iovec.self), third, Int64(d), Int32(truncatingIfNeeded: f))
        case SYS_sendfile: return interposedSendfile(fd, second, typed(c, Int64.self), d)
        case SYS_splice:
            return interposedSplice(fd, typed(b, Int64.self), third, typed(d, Int64.self), e, UInt32(truncatingIfNeeded: f))
        case SYS_bind: return Int(interposedBind(fd, pointer(b), UInt32(truncatingIfNeeded: c)))
        case SYS_listen: return Int(interposedListen(fd, second))
        case SYS_connect: return Int(interposedConnect(fd, pointer(b), UInt32(truncatingIfNeeded: c)))
        case SYS_shutdown: return Int(interposedShutdown(fd, second))
        case SYS_getsockopt: return Int(interposedGetsockopt(fd, second, third, pointer(d), typed(e, UInt32.self)))
        case SYS_setsockopt: return Int(interposedSetsockopt(fd, second, third, pointer(d), UInt32(truncatingIfNeeded: e)))
        case SYS_close: return Int(interposedClose(fd))
        case SYS_dup: return Int(interposedDup(fd))
        case SYS_dup3: return Int(interposedDup3(fd, second, third))
        case SYS_fcntl: return Int(interposedFcntl(fd, second, c))
        case SYS_ioctl: return Int(interposedIoctl(fd, UInt(UInt32(truncatingIfNeeded: b)), pointer(c)))
        case SYS_epoll_ctl: return Int(interposedEpollCtl(fd, second, third, typed(d, epoll_event.self)))
        case SYS_epoll_pwait: return Int(interposedEpollPwait(fd, typed(b, epoll_event.self), third, fourth, pointer(e)))
        case SYS_epoll_pwait2:
            return Int(interposedEpollPwait2(fd, typed(b, epoll_event.self), third, typed(d, timespec.self), pointer(e)))
        case SYS_ppoll:
            return tellingTimeLeft(c) {
                Int(interposedPpoll(typed(a, pollfd.self), UInt(bitPattern: b), typed(c, timespec.self), pointer(d)))
            }
        case SYS_pselect6:
            // The sixth argument points to the mask and its size.
            var mask: UInt = 0
            if let pair = pointer(f), ss_copy_program_memory(&mask, pair, 8) != 0 {
                return ss_real.syscall(Int(call), a, b, c, d, e, f)
            }
            return tellingTimeLeft(e) {
                Int(interposedPselect(
                    fd, pointer(b), pointer(c), pointer(d), typed(e, timespec.self), UnsafeRawPointer(bitPattern: mask)))
            }
        default: return performOld(call)
        }
    }

    /// The system calls, unlike the functions, leave what remains of the time-out, where they can.
    private func tellingTimeLeft(_ address: Int, _ call: () -> Int) -> Int {
        var time = timespec()
        guard let place = pointer(address), ss_copy_program_memory(&time, place, MemoryLayout<timespec>.size) == 0 else { return call() }
        let start = ss_monotonic_ns()
        let result = call()
        if isTime(time) {
            var left = timeLeft(of: time, since: start)
            _ = ss_copy_program_memory(place, &left, MemoryLayout<timespec>.size)
        }
        return result
    }

    /// Work on sockets that the kernel will do by itself: they go to TCP first, as for aio_read. One that cannot go now is refused
    /// as if there were no room for it, and what comes before it is submitted.
    private func submit(_ call: Int32) -> Int {
        var index = 0
        var request = 0
        // A list or an entry that cannot be read is the kernel's to refuse.
        while index < b, let list = pointer(c), ss_copy_program_memory(&request, list + 8 &* index, 8) == 0 {
            if !mayBeSubmitted(pointer(request)) {
                return index == 0 ? answer(0 &- Int(EAGAIN)) : ss_real.syscall(Int(call), a, index, c, d, e, f)
            }
            index &+= 1
        }
        return ss_real.syscall(Int(call), a, b, c, d, e, f)
    }

    /// A struct iocb has the operation in bytes 16 and 17, and the descriptor in bytes 20 to 23.
    private func mayBeSubmitted(_ request: UnsafeMutableRawPointer?) -> Bool {
        var words: (UInt32, Int32) = (0, -1)
        guard let request, ss_copy_program_memory(&words, request + 16, 8) == 0 else { return true }
        switch words.0 & 0xFFFF {
        case 0, 5, 7: return isOnTCP(words.1, reads: true)  // PREAD, POLL, PREADV
        case 1, 8: return isOnTCP(words.1)  // PWRITE, PWRITEV
        default: return true
        }
    }

    /// A child with memory of its own (no CLONE_VM, no CLONE_FILES) that goes on here (no other stack).
    private func makesProcess(_ call: Int32) -> Bool {
        var stack = UInt64(truncatingIfNeeded: b)
        guard let flags = cloneFlags(call) else { return false }
        if call == SYS_clone3, let arguments = pointer(a), ss_copy_program_memory(&stack, arguments + 40, 8) != 0 { return false }
        return flags & 0x500 == 0 && stack == 0
    }

    /// A child on our memory that is no thread. When it ends nobody knows.
    private func lendsMemory(_ call: Int32) -> Bool {
        guard let flags = cloneFlags(call) else { return false }
        return flags & 0x100 != 0 && flags & 0x1_0000 == 0
    }

    private func cloneFlags(_ call: Int32) -> UInt64? {
        if call == SYS_clone { return UInt64(truncatingIfNeeded: a) }
        var flags: UInt64 = 0
        guard let arguments = pointer(a), ss_copy_program_memory(&flags, arguments, 8) == 0 else { return nil }
        return flags
    }

    private func fork(_ call: Int32) -> Int {
        switchBeforeFork()
        let child = ss_real.syscall(Int(call), a, b, c, d, e, f)
        if child == 0 { switchAfterForkInChild() } else { switchAfterForkInParent() }
        return child
    }

    private func performOld(_ call: Int32) -> Int {
        #if arch(x86_64)
        switch call {
        case SYS_epoll_create: return Int(interposedEpollCreate(fd))
        case SYS_fork: return fork(call)
        case SYS_vfork:
            ss_lend_memory(1)
            return ss_real.syscall(Int(call), a, b, c, d, e, f)
        case SYS_epoll_wait: return Int(interposedEpollWait(fd, typed(b, epoll_event.self), third, fourth))
        case SYS_dup2: return Int(interposedDup2(fd, second))
        case SYS_poll: return Int(interposedPoll(typed(a, pollfd.self), UInt(bitPattern: b), third))
        case SYS_select: return Int(interposedSelect(fd, pointer(b), pointer(c), pointer(d), typed(e, timeval.self)))
        default: break
        }
        #endif
        return ss_real.syscall(Int(call), a, b, c, d, e, f)
    }
}
