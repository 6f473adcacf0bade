import CInterposer
import CSocketSwitch

// Calls that move a socket's data inside the kernel or inside libc, where the switch does not see them.

/// A socket behind a FILE stays on TCP.
@c(fdopen) public func interposedFdopen(_ fd: Int32, _ mode: UnsafePointer<CChar>?) -> UnsafeMutableRawPointer? {
    if descriptorEntry(fd) != 0 { keepOnTCP(fd) }
    return ss_real.fdopen(fd, mode)
}

@inline(never)
private func keepOnTCP(_ fd: Int32) { _ = switchKeepsOnTCP(fd) }

@c(splice) public func interposedSplice(
    _ input: Int32, _ inputOffset: UnsafeMutablePointer<Int64>?, _ output: Int32,
    _ outputOffset: UnsafeMutablePointer<Int64>?, _ count: Int, _ flags: UInt32
) -> Int {
    (descriptorEntry(input) | descriptorEntry(output)) == 0
        ? ss_real.splice(input, inputOffset, output, outputOffset, count, flags)
        : trackedSplice(input, inputOffset, output, outputOffset, count, flags)
}

/// A socket that has its companion already cannot be spliced: EINVAL, on which programs copy.
@inline(never)
func trackedSplice(
    _ input: Int32, _ inputOffset: UnsafeMutablePointer<Int64>?, _ output: Int32,
    _ outputOffset: UnsafeMutablePointer<Int64>?, _ count: Int, _ flags: UInt32
) -> Int {
    if switchKeepsOnTCP(input), switchKeepsOnTCP(output) {
        return ss_real.splice(input, inputOffset, output, outputOffset, count, flags)
    }
    return answer(0 &- Int(EINVAL))
}
