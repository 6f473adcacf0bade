import CSocketSwitch
@c(write) public func interposedWrite(_ fd: Int32, _ b: UnsafeRawPointer?, _ n: Int) -> Int {
    return ss_syscall6(1, Int(fd), Int(bitPattern: b), n,0,0,0)
}
