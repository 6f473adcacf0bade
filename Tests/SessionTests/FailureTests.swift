import CSocketSwitch
import Glibc
import Session
import SessionTestSupport
import SocketTable
import StreamRing
import Testing

/// Shared anonymous mappings of this process: windows, mirrors, writers.
private func sharedMappings() -> Int {
    guard let file = fopen("/proc/self/maps", "r") else { return -1 }
    defer { fclose(file) }
    var line = [CChar](repeating: 0, count: 4096)
    var count = 0
    while fgets(&line, 4096, file) != nil {
        if strstr(line, "/dev/zero") != nil { count += 1 }
    }
    return count
}

extension SessionTests {
    /// A provider that fails: before the session is up nobody notices (WSD-C10), afterwards everybody does (WSD-C13).
    @Suite("Failing providers", .serialized) struct FailureTests {
        @Test("A failure while setting up leaves nothing behind",
              arguments: [TestCall.socket, .bind, .send, .sendCompletion, .receive, .overlappedResult, .notification, .register, .rdmaWrite],
              [1, 2])
        func settingUp(_ call: TestCall, nth: Int) throws {
            let fabric = TestFabric.shared
            _ = LoadedProvider.remoteWrites
            let before = (fabric.openSockets, fabric.registeredRegions, UpCalls.open, sharedMappings())
            fabric.fail(call, nth: nth)
            defer { fabric.forgetFailures() }
            Watchdog.watch({ "setting up with \(call)" }) {
                do {
                    let pair = try Pair(.remoteWrites)
                    // Only a write may fail unnoticed: it is asynchronous.
                    #expect(call == .rdmaWrite || call == .overlappedResult)
                    pair.close()
                } catch {
                    #expect(!fabric.isFailurePending(call))
                }
            }
            #expect(fabric.openSockets == before.0)
            #expect(fabric.registeredRegions == before.1)
            #expect(UpCalls.open == before.2)
            #expect(sharedMappings() == before.3)
        }

        @Test("A write that fails resets both sides in mid-stream", arguments: [TestCall.rdmaWrite, .rdmaWriteCompletion], [1, 2, 17, 300])
        func midStream(_ call: TestCall, nth: Int) throws {
            let fabric = TestFabric.shared
            try withPair(.remoteWrites) { pair in
                fabric.fail(call, nth: nth)
                defer { fabric.forgetFailures() }
                let ends = [pair.a, pair.b]
                let results = ends.map { _ in Buffer(16) }
                var threads: [pthread_t] = []
                for (end, outcome) in zip(ends, results) {
                    threads.append(startThread {
                        let bytes = Buffer(100_000)
                        var result = 0
                        repeat {
                            result = end.send(bytes.bytes, bytes.count)
                            Watchdog.pat()
                        } while result > 0
                        outcome.bytes.storeBytes(of: result, as: Int.self)
                    })
                    threads.append(startThread {
                        let bytes = Buffer(100_000)
                        var result = 0
                        repeat { result = end.receive(bytes.bytes, bytes.count) } while result > 0
                        outcome.bytes.storeBytes(of: result, toByteOffset: 8, as: Int.self)
                    })
                }
                join(threads)
                for (end, outcome) in zip(ends, results) {
                    let sent = outcome.bytes.load(as: Int.self)
                    let received = outcome.bytes.load(fromByteOffset: 8, as: Int.self)
                    if end.slot.reason.load() == Reason.companionFailed.rawValue {
                        #expect(sent == -Int(ECONNRESET) && received == -Int(ECONNRESET))
                    } else {
                        // The kernel tells of a reset once: to the one or to the other.
                        #expect(sent == -Int(ECONNRESET) || sent == -Int(EPIPE) && received == -Int(ECONNRESET))
                        #expect(received == -Int(ECONNRESET) || received == 0 && sent == -Int(ECONNRESET))
                    }
                }
                #expect(ends.contains { $0.slot.reason.load() == Reason.companionFailed.rawValue })
            }
        }

        @Test("A failure reaches sides that both sleep in receive") func asleep() throws {
            try withPair(.remoteWrites) { pair in
                TestFabric.shared.fail(.rdmaWriteCompletion, nth: 1)
                defer { TestFabric.shared.forgetFailures() }
                let threads = [pair.a, pair.b].map { end in
                    startThread {
                        if end === pair.a { #expect(say(end, "lost") == 4) }
                        #expect(hear(end, 1) == "<-\(ECONNRESET)>")
                    }
                }
                join(threads)
            }
        }

        @Test("A failure while nothing is on the companion leaves the connection on TCP") func onTCP() throws {
            try withPair(.remoteWrites, onCompanion: false) { pair in
                TestFabric.shared.fail(.rdmaWriteCompletion, nth: 1)
                defer { TestFabric.shared.forgetFailures() }
                for end in [pair.a, pair.b] { end.session.maintain(end.fd) }
                while TestFabric.shared.isFailurePending(.rdmaWriteCompletion) { sched_yield() }
                while pair.a.slot.flags.load() & Slot.Flags.tcpOnly == 0, pair.b.slot.flags.load() & Slot.Flags.tcpOnly == 0 {
                    for end in [pair.a, pair.b] { end.session.maintain(end.fd) }
                }
                for (from, to) in [(pair.a, pair.b), (pair.b, pair.a)] {
                    #expect(pair.sendOverTCP(from, "still here", 10) == 10)
                    #expect(hear(to, 10) == "still here")
                }
            }
        }
    }
}
