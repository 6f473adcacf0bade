import CSocketSwitch

/// What `ss_descriptor_table` says of a descriptor: 0, or kind and index.
package enum DescriptorKind {
    package static var socket: UInt32 { 1 }
    package static var epollSet: UInt32 { 2 }
    package static var own: UInt32 { 3 }
}

/// Below this hard limit of RLIMIT_NOFILE the library takes no descriptor: such a program counts its own.
package var leastDescriptorLimit: Int { 1024 }

@inline(__always)
package func descriptorEntry(_ fd: Int32) -> UInt32 {
    UInt32(bitPattern: fd) < UInt32(SS_DESCRIPTORS) ? ss_descriptor_load(UInt32(bitPattern: fd)) : 0
}

@inline(__always)
package func setDescriptorEntry(_ fd: Int32, kind: UInt32, index: UInt32) {
    if UInt32(bitPattern: fd) < UInt32(SS_DESCRIPTORS) { ss_descriptor_store(UInt32(bitPattern: fd), kind << 28 | index) }
}

@inline(__always)
package func clearDescriptorEntry(_ fd: Int32) {
    if UInt32(bitPattern: fd) < UInt32(SS_DESCRIPTORS) { ss_descriptor_store(UInt32(bitPattern: fd), 0) }
}

@inline(__always) package func entryKind(_ entry: UInt32) -> UInt32 { entry >> 28 }
@inline(__always) package func entryIndex(_ entry: UInt32) -> Int { Int(entry & 0x0FFF_FFFF) }
