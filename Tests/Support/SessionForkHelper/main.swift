import CSocketSwitch
import Glibc
import Session
import SessionTestSupport
import SocketTable
import StreamRing

// One dual session whose both ends are held by a parent and the children that it forks. Each process sends and receives
// on both ends, one after the other as the shared test locks say, while the carriers change; every byte is checked.
//
//     SessionForkHelper SEED SECONDS CHILDREN MINIMUM-CHANGES      exits with 0 when all is well
//
// A program of its own, because a test runner has too many threads to be forked.

let arguments = CommandLine.arguments.dropFirst().compactMap { Double($0) }
guard arguments.count == 4 else {
    print("usage: SessionForkHelper SEED SECONDS CHILDREN MINIMUM-CHANGES")
    exit(2)
}
let plan = {
    var plan = StreamPlan(seed: UInt64(arguments[0]), seconds: arguments[1])
    plan.minimumChanges = UInt64(arguments[3])
    return plan
}()
let childCount = Int(arguments[2])

let pair = try Pair(.sharedMemory)
let shared = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)!
let directions = [
    StreamDirection(from: pair.a, to: pair.b, pattern: StreamPattern(plan.seed), memory: shared),
    StreamDirection(from: pair.b, to: pair.a, pattern: StreamPattern(plan.seed + 1), memory: shared + StreamDirection.bytes),
]
let until = ss_monotonic_ns() + UInt64(plan.seconds * 1e9)

/// What each process does: four threads, a sender and a receiver for each direction.
func work(_ process: Int) {
    Watchdog.watch({ "process \(process), seed \(plan.seed)\n\(pair.state)" }) {
        var threads: [pthread_t] = []
        for (side, direction) in directions.enumerated() {
            let id = UInt64(process * 2 + side)
            let (plan, pair, until) = (plan, pair, until)
            threads.append(startThread {
                runSender(direction, plan, id) { ss_monotonic_ns() >= until && carrierChanges(pair) >= plan.minimumChanges }
            })
            threads.append(startThread { runReceiver(direction, plan, id) })
        }
        join(threads)
    }
}

var children: [pid_t] = []
for number in 0..<childCount {
    let entry = TestArena.arena.reserveChild(of: TestArena.process)
    let child = fork()
    precondition(child >= 0)
    if child == 0 {
        ss_thread_id_reset()
        TestArena.arena.process(entry).pid.store(UInt64(getpid()))
        work(number + 1)
        pair.a.closeInChild()
        pair.b.closeInChild()
        TestArena.arena.removeProcess(entry)
        fflush(nil)
        _exit(0)
    }
    children.append(child)
}

let isOver = Flag()
let changer = startThread {
    let (plan, pair) = (plan, pair)
    runCarrierChanges([pair.a, pair.b], seed: plan.seed) { isOver.isSet }
}
work(0)
isOver.set()
join([changer])
var bad = 0
for child in children {
    var status: Int32 = 0
    if waitpid(child, &status, 0) != child || status != 0 { bad += 1 }
}
let failures = directions.reduce(UInt64(0)) { $0 + $1.failures.load() }
let bytes = directions.reduce(UInt64(0)) { $0 + $1.received.load() }
let changes = carrierChanges(pair)
let holders = pair.a.slot.holders.load()
print("\(bytes >> 20) MiB, \(changes) carrier changes, \(failures) failures, \(bad) bad children, \(holders) holder")
pair.close()
exit(failures == 0 && bad == 0 && holders == 1 && changes >= plan.minimumChanges ? 0 : 1)
