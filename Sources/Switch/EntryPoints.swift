import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import SocketTable
import StreamRing
#endif

// The switch's calls, one for each libc call that the interposer hands over. All of them
//   - return what the kernel would: a value >= 0, or -errno;
//   - may be called from any thread and from signal handlers, and never allocate;
//   - work on descriptors that the switch does not know, too (they then are the plain system call).
// The interposer looks at `ss_descriptor_table[fd]` first: 0 = not ours, call libc.

/// Reads the environment. Called once, from the library's constructor.
package func switchStart(service: UnsafePointer<CChar>?, policy: UnsafePointer<CChar>?, wait: UnsafePointer<CChar>?, upgrade: UnsafePointer<CChar>?) {}

package func switchSocket(_ domain: Int32, _ type: Int32, _ proto: Int32) -> Int { ss_sys_socket(domain, type, proto) }
package func switchBind(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int { ss_sys_bind(fd, address, length) }
package func switchListen(_ fd: Int32, _ backlog: Int32) -> Int { ss_sys_listen(fd, backlog) }
package func switchConnect(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int { ss_sys_connect(fd, address, length) }
package func switchAccept(_ fd: Int32, _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?, _ flags: Int32) -> Int { ss_sys_accept4(fd, address, length, flags) }
package func switchClose(_ fd: Int32) -> Int { ss_sys_close(fd) }
package func switchShutdown(_ fd: Int32, _ how: Int32) -> Int { ss_sys_shutdown(fd, how) }

/// write, send, sendto without an address.
package func switchSend(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int { ss_sys_sendto(fd, buffer, count, flags) }
/// read, recv, recvfrom without an address.
package func switchReceive(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32) -> Int { ss_sys_recvfrom(fd, buffer, count, flags) }
/// sendmsg, writev, sendto with an address.
package func switchSendMessage(_ fd: Int32, _ message: UnsafePointer<msghdr>, _ flags: Int32) -> Int { ss_sys_sendmsg(fd, message, flags) }
/// recvmsg, readv, recvfrom with an address.
package func switchReceiveMessage(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ flags: Int32) -> Int { ss_sys_recvmsg(fd, message, flags) }
package func switchSendFile(_ out: Int32, _ input: Int32, _ offset: UnsafeMutablePointer<Int64>?, _ count: Int) -> Int { ss_sys_sendfile(out, input, offset, count) }

package func switchGetOption(_ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?) -> Int { ss_sys_getsockopt(fd, level, name, value, length) }
package func switchSetOption(_ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: UInt32) -> Int { ss_sys_setsockopt(fd, level, name, value, length) }
/// fcntl with its third argument as a machine word (pointer or integer).
package func switchFileControl(_ fd: Int32, _ command: Int32, _ argument: Int) -> Int { ss_sys_fcntl(fd, command, argument) }
package func switchIOControl(_ fd: Int32, _ request: UInt, _ argument: UnsafeMutableRawPointer?) -> Int { ss_sys_ioctl(fd, request, argument) }
package func switchDuplicate(_ fd: Int32) -> Int { ss_sys_fcntl(fd, F_DUPFD, 0) }
/// dup2 and dup3 (`flags` O_CLOEXEC or 0); `old != new`. The caller did the argument checks that dup3 makes.
package func switchDuplicate(_ old: Int32, onto new: Int32, _ flags: Int32) -> Int { ss_syscall6(Int(SYS_dup3), Int(old), Int(new), Int(flags), 0, 0, 0) }
package func switchCloseRange(_ first: UInt32, _ last: UInt32, _ flags: Int32) -> Int { ss_sys_close_range(first, last, flags) }

/// poll and ppoll. `timeout` nil: for ever. `mask`: the kernel's 8-byte signal set, nil: unchanged.
package func switchPoll(_ list: UnsafeMutablePointer<pollfd>?, _ count: Int, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?) -> Int { ss_sys_ppoll(list, count, timeout, mask) }
/// select and pselect. `timeout` nil: for ever; it is updated with what is left where select's rules say so.
package func switchSelect(_ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?, _ except: UnsafeMutableRawPointer?, _ timeout: UnsafeMutablePointer<timespec>?, _ mask: UnsafeRawPointer?) -> Int { -Int(ENOSYS) }

/// epoll_create and epoll_create1: the interposer tells the switch about the new set.
package func switchEpollCreated(_ set: Int32) {}
package func switchEpollControl(_ set: Int32, _ operation: Int32, _ fd: Int32, _ event: UnsafeMutablePointer<epoll_event>?) -> Int { ss_sys_epoll_ctl(set, operation, fd, event) }
/// epoll_wait, epoll_pwait, epoll_pwait2. `timeout` nil: for ever.
package func switchEpollWait(_ set: Int32, _ events: UnsafeMutablePointer<epoll_event>?, _ maximum: Int32, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?) -> Int { ss_sys_epoll_pwait2(set, events, maximum, timeout, mask) }

/// The three hooks of pthread_atfork.
package func switchBeforeFork() {}
package func switchAfterForkInParent() {}
package func switchAfterForkInChild() {}

/// sigaction was called for `signal` (1...64) with SA_RESTART or without it.
package func switchSignalAction(_ signal: Int32, restarts: Bool, isHandler: Bool) {}
