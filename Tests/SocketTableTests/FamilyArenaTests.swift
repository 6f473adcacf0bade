import CSocketSwitch
import Glibc
import OwnProcess
import SocketTable
import StreamRing
import Testing

/// An arena in shared anonymous memory.
private final class Arena {
    let arena: FamilyArena
    init() {
        let memory = mmap(nil, FamilyArena.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        arena = FamilyArena(memory!)
        arena.initialize()
    }
    deinit { munmap(arena.base, FamilyArena.bytes) }
}

/// A process that sleeps until it is killed.
private func spawnSleeper() -> pid_t {
    var strings: [UnsafeMutablePointer<CChar>?] = [strdup("sleep"), strdup("600"), nil]
    defer { for string in strings { free(string) } }
    var pid: pid_t = 0
    #expect(posix_spawnp(&pid, "sleep", nil, nil, &strings, nil) == 0)
    return pid
}

/// The same, once it has locked a byte of a file that it inherits.
private func spawnSleeper(thatLocks byte: Int, of file: Int32) -> pid_t {
    let program = "import fcntl, os, time; fcntl.lockf(\(file), fcntl.LOCK_EX, 1, \(byte)); os.write(\(file), b'x'); time.sleep(600)"
    var strings: [UnsafeMutablePointer<CChar>?] = [strdup("python3"), strdup("-I"), strdup("-c"), strdup(program), nil]
    defer { for string in strings { free(string) } }
    var pid: pid_t = 0
    #expect(posix_spawnp(&pid, "python3", nil, nil, &strings, Glibc.environ) == 0)
    var byte: UInt8 = 0
    var rounds = 0
    while pread(file, &byte, 1, 0) == 1, byte == 0, rounds < 5000 {
        usleep(2000)
        rounds += 1
    }
    #expect(byte != 0)
    return pid
}

private func end(_ pid: pid_t) {
    kill(pid, SIGKILL)
    waitpid(pid, nil, 0)
}

@Suite("FamilyArena", .ownProcess) struct FamilyArenaTests {
    private let memory = Arena()
    private var arena: FamilyArena { memory.arena }
    private var own: UInt64 { UInt64(getpid()) }

    @Test("Parts of the arena do not overlap, and slots and entries are whole cache lines")
    func layout() {
        #expect(FamilyArena.processesOffset + FamilyArena.processCount * FamilyArena.processBytes <= FamilyArena.holdersOffset)
        #expect(FamilyArena.holdersOffset + FamilyArena.processCount * FamilyArena.holderBytes <= FamilyArena.slotsOffset)
        #expect(FamilyArena.slotsOffset % 64 == 0 && Slot.bytes % 64 == 0 && FamilyArena.processBytes % 64 == 0)
        #expect(FamilyArena.bytes == FamilyArena.slotsOffset + FamilyArena.slotCount * Slot.bytes)
    }

    @Test("A call that outlasts its socket is not counted out of the slot's next one")
    func callCounts() {
        let process = arena.addProcess(pid: own)
        let index = arena.allocateSlot(process: process)
        let slot = arena.slot(index)
        let outlasting = slot.plainReaders.enter()
        let ordinary = slot.plainReaders.enter()
        #expect(slot.plainReaders.count == 2)
        #expect(slot.plainReaders.leave(ordinary) && slot.plainReaders.count == 1)
        arena.release(index, process: process)
        #expect(!slot.plainReaders.leave(outlasting) && slot.plainReaders.count == 0)
        #expect(arena.allocateSlot(process: process) == index)
        #expect(slot.plainReaders.isZeroSequential && slot.plainWriters.isZeroSequential)
        let next = slot.plainReaders.enter()
        #expect(!slot.plainReaders.leave(outlasting) && slot.plainReaders.count == 1)
        #expect(slot.plainReaders.leave(next) && slot.plainReaders.isZeroSequential)
        arena.release(index, process: process)
    }

    @Test("Every slot can be taken once, none twice; a freed one comes again with another generation, and empty")
    func everySlot() {
        let process = arena.addProcess(pid: own)
        var seen = Set<Int>()
        for _ in 1..<FamilyArena.slotCount {
            let index = arena.allocateSlot(process: process)
            #expect(index > 0 && index < FamilyArena.slotCount && seen.insert(index).inserted)
            if index == 0 { return }
        }
        #expect(arena.allocateSlot(process: process) == 0)
        #expect(arena.highWater.load() == UInt64(FamilyArena.slotCount))
        for index in [1, 4711, FamilyArena.slotCount - 1] {
            let slot = arena.slot(index)
            slot.reason.store(7)
            slot.sendPosition.store(8)
            slot.flags.store(9)
            slot.carrierChanges.store(10)
            let generation = slot.generation.load()
            #expect(arena.release(index, process: process))
            #expect(!arena.release(index, process: process))
            #expect(arena.allocateSlot(process: process) == index)
            #expect(slot.generation.load() == generation + 1)
            #expect(slot.kind.load() == Slot.Kind.fresh && slot.holders.load() == 1)
            #expect(slot.reason.load() == 0 && slot.sendPosition.load() == 0 && slot.flags.load() == 0 && slot.carrierChanges.load() == 0)
        }
        arena.removeProcess(process)
        #expect((1..<FamilyArena.slotCount).allSatisfy { arena.slot($0).kind.load() == Slot.Kind.free })
    }

    @Test("Threads take and give back slots at the same time: no slot has two owners")
    func threads() async {
        let process = arena.addProcess(pid: own)
        let arena = arena
        let base = UInt(bitPattern: arena.base)
        await withTaskGroup(of: Bool.self) { group in
            for _ in 0..<4 {
                group.addTask {
                    let arena = FamilyArena(UnsafeMutableRawPointer(bitPattern: base)!)
                    var right = true
                    for round in 0..<2000 {
                        let mine = (0..<(1 + round % 5)).map { _ in arena.allocateSlot(process: process) }
                        for index in mine { right = right && index > 0 && arena.slot(index).carrierChanges.add(1) == 1 }
                        for index in mine { right = arena.release(index, process: process) && right }
                    }
                    return right
                }
            }
            for await right in group { #expect(right) }
        }
        #expect((1..<64).allSatisfy { arena.slot($0).kind.load() == Slot.Kind.free && arena.slot($0).holders.load() == 0 })
    }

    @Test("A child holds what its parent holds; the slot lives until both have let go, in either order", arguments: [true, false])
    func children(parentFirst: Bool) {
        let parent = arena.addProcess(pid: own)
        let kept = (0..<200).map { _ in arena.allocateSlot(process: parent) }
        let child = arena.reserveChild(of: parent)
        #expect(child >= 0 && child != parent)
        #expect(arena.claim(child, arena.process(child).pid.load(), pid: own))
        let later = arena.allocateSlot(process: parent)
        for index in kept {
            #expect(arena.slot(index).holders.load() == 2)
            let order = parentFirst ? [parent, child] : [child, parent]
            #expect(!arena.release(index, process: order[0]))
            #expect(arena.slot(index).kind.load() != Slot.Kind.free)
            #expect(arena.release(index, process: order[1]))
            #expect(arena.slot(index).kind.load() == Slot.Kind.free)
        }
        #expect(arena.slot(later).holders.load() == 1)
        #expect(!arena.release(later, process: child))
    }

    @Test("A process that found no entry holds nothing, and neither do its children")
    func strangers() {
        let process = arena.addProcess(pid: own)
        let index = arena.allocateSlot(process: process)
        let before = (0..<FamilyArena.processCount).map { arena.process($0).pid.load() }
        #expect(arena.allocateSlot(process: -1) == 0)
        #expect(!arena.release(index, process: -1))
        let child = arena.reserveChild(of: -1)
        #expect(child > 0 && !arena.isHeld(index, by: child))
        #expect(arena.slot(index).holders.load() == 1)
        arena.removeProcess(child)
        #expect((0..<FamilyArena.processCount).map { arena.process($0).pid.load() } == before)
    }

    /// A slot that this process and a child, which sleeps, hold; the child and its entry.
    private func shareWithSleeper() -> (shared: Int, pid: pid_t, child: Int) {
        let parent = arena.addProcess(pid: own)
        let shared = arena.allocateSlot(process: parent)
        let pid = spawnSleeper()
        let child = arena.reserveChild(of: parent)
        #expect(arena.claim(child, arena.process(child).pid.load(), pid: UInt64(pid)))
        return (shared, pid, child)
    }

    @Test("A child that has been killed holds nothing, although nobody has waited for it yet")
    func unwaited() {
        let (shared, pid, _) = shareWithSleeper()
        kill(pid, SIGKILL)
        for _ in 0..<1000 where arena.slot(shared).holders.load() == 2 {
            usleep(1000)
            arena.reapDeadProcesses()
        }
        #expect(arena.slot(shared).holders.load() == 1)
        waitpid(pid, nil, 0)
    }

    @Test("What a killed process held is taken back; what others hold too stays")
    func reaping() {
        let (shared, pid, child) = shareWithSleeper()
        let alone = arena.allocateSlot(process: child)
        arena.reapDeadProcesses()
        #expect(arena.slot(shared).holders.load() == 2 && arena.slot(alone).holders.load() == 1)
        end(pid)
        arena.reapDeadProcesses()
        #expect(arena.slot(shared).holders.load() == 1 && arena.slot(shared).kind.load() != Slot.Kind.free)
        #expect(arena.slot(alone).kind.load() == Slot.Kind.free)
        #expect(arena.process(child).state.load() == ProcessEntry.free)
        arena.reapDeadProcesses()
        #expect(arena.slot(shared).holders.load() == 1)
    }

    @Test("A family is full of processes while all of its entries are those of the living")
    func fullOfProcesses() {
        while true {
            #expect(!arena.isFullOfProcesses)
            if arena.addProcess(pid: own) == FamilyArena.processCount - 1 { break }
        }
        #expect(arena.isFullOfProcesses && arena.addProcess(pid: own) == -1)
        arena.removeProcess(7)
        #expect(!arena.isFullOfProcesses)
        // One that has died counts no more.
        _ = arena.addProcess(pid: 0x7FFF_FFFF)
        #expect(!arena.isFullOfProcesses)
    }

    @Test("A process in another PID namespace is not judged by its number, but by the lock that it keeps")
    func otherNumbers() {
        let file = memfd_create("arena", 0)
        ss_relatives.arena_plus_one = file + 1
        defer {
            ss_relatives.arena_plus_one = 0
            close(file)
        }
        #expect(ftruncate(file, FamilyArena.processCount) == 0)
        let parent = arena.addProcess(pid: own)
        let index = arena.allocateSlot(process: parent)
        // Nobody here has that number, and nobody can be asked about it.
        let unwatched = arena.addProcess(pid: 0x7FFF_FFFF, space: 1)
        arena.hold(index, process: unwatched)
        arena.reapDeadProcesses()
        #expect(arena.slot(index).holders.load() == 2)
        arena.removeProcess(unwatched)
        // One that lives, and one that has ended.
        let child = arena.addProcess(pid: 0x7FFF_FFFF, space: 1)
        arena.hold(index, process: child)
        arena.process(child).isWatched.store(1)
        let pid = spawnSleeper(thatLocks: child, of: file)
        arena.reapDeadProcesses()
        #expect(arena.slot(index).holders.load() == 2)
        end(pid)
        arena.reapDeadProcesses()
        #expect(arena.slot(index).holders.load() == 1 && arena.process(child).state.load() == ProcessEntry.free)
        // The entry's next user says anew whether it is watched.
        #expect(arena.addProcess(pid: own) == child && arena.process(child).isWatched.load() == 0)
        arena.watch(child)
        #expect(arena.process(child).isWatched.load() == 1)
    }

    @Test("A fork that failed leaves a reservation, which expires; a child that comes too late is told")
    func reservations() {
        let parent = arena.addProcess(pid: own)
        let index = arena.allocateSlot(process: parent)
        let child = arena.reserveChild(of: parent)
        let reservation = arena.process(child).pid.load()
        let made = reservation & ~ProcessEntry.reserved
        let patience = UInt64(FamilyArena.reservationNanoseconds)
        #expect(arena.slot(index).holders.load() == 2)
        arena.reapDeadProcesses(now: made + patience)
        #expect(arena.slot(index).holders.load() == 2)
        // Another thread's reading of the clock, slightly older than the entry, is no age.
        arena.reapDeadProcesses(now: made - 1)
        #expect(arena.slot(index).holders.load() == 2)
        arena.reapDeadProcesses(now: made + patience + 1)
        #expect(arena.slot(index).holders.load() == 1)
        #expect(!arena.claim(child, reservation, pid: own))
        // The same entry, reserved for another child.
        let other = arena.reserveChild(of: parent)
        #expect(other == child && !arena.claim(child, reservation, pid: own))
        let late = arena.addProcess(pid: own)
        arena.hold(index, process: late)
        arena.hold(index, process: late)
        #expect(arena.slot(index).holders.load() == 3)
        // A child that came in time is never taken for dead.
        #expect(arena.claim(other, arena.process(other).pid.load(), pid: own))
        arena.reapDeadProcesses(now: made + 100 * patience)
        #expect(arena.process(other).state.load() == ProcessEntry.live)
        #expect(arena.slot(index).holders.load() == 3)
    }

    @Test("The process table is bounded")
    func fullProcessTable() {
        for _ in 0..<FamilyArena.processCount { #expect(arena.addProcess(pid: own) >= 0) }
        #expect(arena.addProcess(pid: own) == -1)
        #expect(arena.reserveChild(of: 0) == -1)
        arena.removeProcess(17)
        #expect(arena.addProcess(pid: own) == 17)
    }
}
