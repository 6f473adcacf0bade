import CSocketSwitch

/// Memory for one call: on the stack when `bytes` is at most 1 KiB, else a mapping of its own. nil: there is none.
func withScratch(_ bytes: Int, _ body: (UnsafeMutableRawPointer?) -> Int) -> Int {
    if bytes <= 1024 {
        return withUnsafeTemporaryAllocation(byteCount: 1024, alignment: 16) { body($0.baseAddress) }
    }
    let address = ss_sys_mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard address > 0, let memory = UnsafeMutableRawPointer(bitPattern: address) else { return body(nil) }
    let result = body(memory)
    _ = ss_sys_munmap(memory, bytes)
    return result
}
