import CSocketSwitch
import Glibc
import OwnProcess
import SocketTable
import StreamRing
import Testing

/// A lock and a counter that it guards, in shared memory.
private struct Guarded: @unchecked Sendable {
    let base: UnsafeMutableRawPointer
    init() {
        base = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)!
    }
    var lock: FamilyLock { FamilyLock(base, 0) }
    var word: UnsafeMutablePointer<UInt32> { base.assumingMemoryBound(to: UInt32.self) }
    /// Not atomic: only the lock keeps it right.
    var counter: UnsafeMutablePointer<UInt64> { (base + 64).assumingMemoryBound(to: UInt64.self) }
    func free() { munmap(base, 4096) }
}

/// Runs `body` in a thread of its own and waits for its end.
private func inThread(_ body: @escaping @Sendable () -> Void) -> pthread_t {
    final class Box { let body: @Sendable () -> Void; init(_ body: @escaping @Sendable () -> Void) { self.body = body } }
    var thread = pthread_t()
    let made = pthread_create(&thread, nil, { Unmanaged<Box>.fromOpaque($0!).takeRetainedValue().body(); return nil },
        Unmanaged.passRetained(Box(body)).toOpaque())
    #expect(made == 0)
    return thread
}

@Suite("FamilyLock", .ownProcess) struct FamilyLockTests {
    @Test("Taken, refused, given back")
    func plain() {
        let guarded = Guarded()
        defer { guarded.free() }
        #expect(guarded.lock.lock() == .acquired)
        pthread_join(inThread { #expect(!guarded.lock.tryLock()) }, nil)
        guarded.lock.unlock()
        #expect(guarded.word.pointee == 0)
        pthread_join(inThread {
            #expect(guarded.lock.tryLock())
            guarded.lock.unlock()
        }, nil)
    }

    @Test("Threads in contention: nobody is inside together, nobody sleeps for ever", arguments: [2, 4, 8])
    func contention(threads: Int) {
        let guarded = Guarded()
        defer { guarded.free() }
        let rounds = 20_000 / threads
        let all = (0..<threads).map { number in
            inThread {
                for round in 0..<rounds {
                    #expect(guarded.lock.lock() == .acquired)
                    let value = guarded.counter.pointee
                    // Holders that are descheduled make sleepers.
                    if (round + number) % 64 == 0 { sched_yield() }
                    if round % 1000 == 0 { usleep(100) }
                    guarded.counter.pointee = value + 1
                    guarded.lock.unlock()
                }
            }
        }
        for thread in all { pthread_join(thread, nil) }
        #expect(guarded.counter.pointee == UInt64(rounds * threads))
        #expect(guarded.lock.tryLock())
    }

    @Test("An owner that is dead is followed", arguments: [false, true])
    func deadOwner(withSleepers: Bool) {
        let guarded = Guarded()
        defer { guarded.free() }
        // The thread ends inside, as a killed process does: its kernel id is no more.
        pthread_join(inThread { #expect(guarded.lock.lock() == .acquired) }, nil)
        if withSleepers { guarded.word.pointee |= 0x8000_0000 }
        #expect(guarded.lock.lock() == .acquired)
        guarded.lock.unlock()
        #expect(guarded.lock.lock() == .acquired)
        guarded.lock.unlock()
    }

    @Test("An owner in another process that is killed is followed, by several at once")
    func killedOwner() {
        let guarded = Guarded()
        defer { guarded.free() }
        var strings: [UnsafeMutablePointer<CChar>?] = [strdup("sleep"), strdup("600"), nil]
        defer { for string in strings { free(string) } }
        var pid: pid_t = 0
        #expect(posix_spawnp(&pid, "sleep", nil, nil, &strings, nil) == 0)
        guarded.word.pointee = UInt32(pid)  // its main thread has that id
        let waiting = (0..<3).map { _ in
            inThread {
                #expect(guarded.lock.lock() == .acquired)
                guarded.counter.pointee += 1
                guarded.lock.unlock()
            }
        }
        usleep(50_000)
        #expect(guarded.counter.pointee == 0)
        kill(pid, SIGKILL)
        // Nobody has waited for it yet: its number is there still.
        for _ in 0..<5000 where guarded.counter.pointee != 3 { usleep(1000) }
        #expect(guarded.counter.pointee == 3)
        waitpid(pid, nil, 0)
        for thread in waiting { pthread_join(thread, nil) }
    }

    @Test("An owner in another PID namespace is not followed because nobody here has its number, but in the end it is")
    func ownerElsewhere() {
        let guarded = Guarded()
        defer { guarded.free() }
        guarded.word.pointee = 5 << 22 | 0x3F_FFFF
        var start = ss_monotonic_ns()
        #expect(guarded.lock.lock() == .acquired)
        #expect(ss_monotonic_ns() - start > 1_500_000_000)
        guarded.lock.unlock()
        // This thread's own number, meant elsewhere, is not this thread.
        guarded.word.pointee = 5 << 22 | UInt32(ss_thread_id())
        start = ss_monotonic_ns()
        let owner = inThread {
            usleep(200_000)
            guarded.lock.unlock()
        }
        #expect(guarded.lock.lock() == .acquired)
        #expect(ss_monotonic_ns() - start > 150_000_000)
        guarded.lock.unlock()
        pthread_join(owner, nil)
    }

    @Test("A handler that interrupted the owner is told so; a frame that longjmp abandoned is not")
    func reentry() {
        let guarded = Guarded()
        defer { guarded.free() }
        /// Takes the lock in a frame that lies deeper than its caller's, and leaves without giving it back.
        @Sendable @inline(never) func deeper(_ depth: Int) -> FamilyLock.Outcome {
            withUnsafeTemporaryAllocation(byteCount: 256, alignment: 16) { bytes in
                bytes[0] = UInt8(truncatingIfNeeded: depth)
                return depth == 0 ? guarded.lock.lock() : deeper(depth - 1)
            }
        }
        pthread_join(inThread {
            #expect(guarded.lock.lock() == .acquired)
            #expect(deeper(5) == .ownedByThisThread)
            guarded.lock.unlock()
            #expect(deeper(20) == .acquired)
            #expect(guarded.lock.lock() == .acquired)
            guarded.lock.unlock()
        }, nil)
    }
}
