import CSocketSwitch
func readinessForget(_ fd: Int32, _ index: Int) {}
func readinessSetClosed(_ set: Int32) {}
func readinessWillUpgrade(_ index: Int) {}
func readinessKick(_ index: Int) {}
func readinessAfterForkInChild() {}
func readinessIsNested(_ index: Int) -> Bool { false }
package func switchPoll(_ list: UnsafeMutablePointer<pollfd>?, _ count: Int, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?) -> Int { ss_sys_ppoll(list, count, timeout, mask) }
package func switchSelect(_ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?, _ except: UnsafeMutableRawPointer?, _ timeout: UnsafeMutablePointer<timespec>?, _ mask: UnsafeRawPointer?) -> Int { ss_syscall6(Int(SYS_pselect6), Int(count), Int(bitPattern: read), Int(bitPattern: write), Int(bitPattern: except), Int(bitPattern: timeout), 0) }
package func switchEpollCreated(_ set: Int32) {}
package func switchEpollControl(_ set: Int32, _ operation: Int32, _ fd: Int32, _ event: UnsafeMutablePointer<epoll_event>?) -> Int { ss_sys_epoll_ctl(set, operation, fd, event) }
package func switchEpollWait(_ set: Int32, _ events: UnsafeMutablePointer<epoll_event>?, _ maximum: Int32, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?) -> Int { ss_sys_epoll_pwait2(set, events, maximum, timeout, mask) }
