import CSocketSwitch
import Synchronization

/// One 64-bit word of shared memory, at a fixed offset of some block.
///
/// A `Word` is a pointer: copying it copies no state. Loads acquire and stores release unless the name says otherwise,
/// so that everything written before `store` is visible to whoever `load`s the stored value.
/// Safe from any thread, in signal handlers and on both sides of a fork.
package struct Word {
    @usableFromInline let pointer: UnsafeMutablePointer<Atomic<UInt64>>

    @inline(__always)
    package init(_ base: UnsafeMutableRawPointer, _ offset: Int) {
        pointer = (base + offset).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    /// The word's address.
    @inline(__always) package var address: UnsafeMutableRawPointer { UnsafeMutableRawPointer(pointer) }

    @inline(__always) package func load() -> UInt64 { pointer.pointee.load(ordering: .acquiring) }
    @inline(__always) package func loadRelaxed() -> UInt64 { pointer.pointee.load(ordering: .relaxed) }
    @inline(__always) package func store(_ value: UInt64) { pointer.pointee.store(value, ordering: .releasing) }
    @inline(__always) package func storeRelaxed(_ value: UInt64) { pointer.pointee.store(value, ordering: .relaxed) }
    /// A store that is ordered before every later load of this thread (Dekker pattern: publish, then look).
    @inline(__always) package func storeSequential(_ value: UInt64) { pointer.pointee.store(value, ordering: .sequentiallyConsistent) }
    @inline(__always) package func loadSequential() -> UInt64 { pointer.pointee.load(ordering: .sequentiallyConsistent) }

    /// Adds and returns the value *after* the addition.
    @inline(__always) @discardableResult
    package func add(_ value: UInt64) -> UInt64 { pointer.pointee.wrappingAdd(value, ordering: .sequentiallyConsistent).newValue }
    /// Subtracts and returns the value *after* the subtraction.
    @inline(__always) @discardableResult
    package func subtract(_ value: UInt64) -> UInt64 { pointer.pointee.wrappingSubtract(value, ordering: .sequentiallyConsistent).newValue }
    /// Adds without ordering anything: for statistics.
    @inline(__always) package func count(_ value: UInt64) { pointer.pointee.wrappingAdd(value, ordering: .relaxed) }

    @inline(__always) @discardableResult
    package func setBits(_ bits: UInt64) -> UInt64 { pointer.pointee.bitwiseOr(bits, ordering: .sequentiallyConsistent).oldValue }
    @inline(__always) @discardableResult
    package func clearBits(_ bits: UInt64) -> UInt64 { pointer.pointee.bitwiseAnd(~bits, ordering: .sequentiallyConsistent).oldValue }

    @inline(__always)
    package func exchange(_ value: UInt64) -> UInt64 { pointer.pointee.exchange(value, ordering: .acquiringAndReleasing) }

    /// True when the word was `expected` and now is `desired`.
    @inline(__always)
    package func compareExchange(_ expected: UInt64, _ desired: UInt64) -> Bool {
        pointer.pointee.compareExchange(expected: expected, desired: desired, ordering: .acquiringAndReleasing).exchanged
    }
}

/// One 32-bit word of shared memory: what a futex waits on.
package struct HalfWord {
    @usableFromInline let pointer: UnsafeMutablePointer<Atomic<UInt32>>

    @inline(__always)
    package init(_ base: UnsafeMutableRawPointer, _ offset: Int) {
        pointer = (base + offset).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// The word's address, for the kernel.
    @inline(__always)
    package var address: UnsafeMutablePointer<UInt32> { UnsafeMutableRawPointer(pointer).assumingMemoryBound(to: UInt32.self) }

    @inline(__always) package func load() -> UInt32 { pointer.pointee.load(ordering: .acquiring) }
    @inline(__always) package func loadRelaxed() -> UInt32 { pointer.pointee.load(ordering: .relaxed) }
    @inline(__always) package func store(_ value: UInt32) { pointer.pointee.store(value, ordering: .releasing) }
    @inline(__always) package func exchange(_ value: UInt32) -> UInt32 { pointer.pointee.exchange(value, ordering: .acquiringAndReleasing) }
    /// Adds and returns the value *after* the addition.
    @inline(__always) @discardableResult
    package func add(_ value: UInt32) -> UInt32 { pointer.pointee.wrappingAdd(value, ordering: .sequentiallyConsistent).newValue }
    @inline(__always) @discardableResult
    package func subtract(_ value: UInt32) -> UInt32 { pointer.pointee.wrappingSubtract(value, ordering: .sequentiallyConsistent).newValue }

    /// Returns the value found: `expected` means that the word now is `desired`.
    @inline(__always)
    package func compareExchange(_ expected: UInt32, _ desired: UInt32) -> UInt32 {
        pointer.pointee.compareExchange(expected: expected, desired: desired, ordering: .acquiringAndReleasing).original
    }
}

/// Orders every earlier store of this thread before every later load.
@inline(__always)
package func fullFence() { atomicMemoryFence(ordering: .sequentiallyConsistent) }
