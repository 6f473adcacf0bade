import CSocketSwitch
import Glibc
import Session
import SessionTestSupport
import SocketTable
import Testing

extension SessionTests {
    /// Urgent data go over TCP, in the order of the stream (WSD-T6).
    @Suite("Urgent data", .serialized) struct UrgentTests {
        private func isAtMark(_ end: Endpoint) -> Bool {
            var atMark: Int32 = 0
            #expect(ss_sys_ioctl(end.fd, 0x8905 /* SIOCATMARK */, &atMark) == 0)
            return atMark != 0 && end.session.isReadUpToTCP
        }

        private func awaitUrgent(_ end: Endpoint) {
            var entry = pollfd(fd: end.fd, events: Int16(POLLPRI), revents: 0)
            #expect(ss_sys_ppoll(&entry, 1, nil, nil) == 1)
        }

        @Test("The mark lies behind what is still in the ring; reading goes on behind it", arguments: ProviderUnderTest.allCases)
        func order(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let (a, b) = (pair.a, pair.b)
                #expect(say(a, "before") == 6)
                #expect(say(a, "!", Int(MSG_OOB)) == 1)
                #expect(say(a, "after") == 5)
                awaitUrgent(b)
                let byte = Buffer(1)
                #expect(b.receive(byte.bytes, 1, Int(MSG_OOB)) == 1)
                #expect(byte.bytes.load(as: UInt8.self) == UInt8(ascii: "!"))
                #expect(!isAtMark(b))
                #expect(hear(b, 6) == "before")
                #expect(isAtMark(b))
                let rest = Buffer(5)
                #expect(b.receive(rest.bytes, 5, Int(MSG_PEEK)) == 5)
                #expect(b.receive(rest.bytes, 5, Int(MSG_WAITALL)) == 5)
                #expect(memcmp(rest.bytes, "after", 5) == 0)
                #expect(!isAtMark(b))
                #expect(a.slot.reason.load() == Reason.urgentData.rawValue)
                // The other direction stays where it is.
                #expect(say(b, "answer") == 6)
                #expect(hear(a, 6) == "answer")
            }
        }

        @Test("A receive ends at the mark", arguments: ProviderUnderTest.allCases) func stopsAtMark(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                #expect(pair.sendOverTCP(pair.a, "one", 3) == 3)
                #expect(say(pair.a, "!", Int(MSG_OOB)) == 1)
                #expect(say(pair.a, "two") == 3)
                awaitUrgent(pair.b)
                let buffer = Buffer(10)
                #expect(pair.b.receive(buffer.bytes, 10) == 3)
                #expect(isAtMark(pair.b))
                #expect(hear(pair.b, 3) == "two")
            }
        }

        @Test("A receive that begins in the ring ends at the mark, too, and so does one that waits for all",
              arguments: ProviderUnderTest.allCases, [Int32(0), Int32(MSG_PEEK), Int32(MSG_WAITALL)])
        func stopsAtMarkBehindRing(_ provider: ProviderUnderTest, flags: Int32) throws {
            try withPair(provider) { pair in
                #expect(say(pair.a, "one") == 3)
                #expect(say(pair.a, "!", Int(MSG_OOB)) == 1)
                #expect(say(pair.a, "two") == 3)
                awaitUrgent(pair.b)
                let buffer = Buffer(10)
                #expect(pair.b.receive(buffer.bytes, 10, Int(flags)) == 3)
                if flags == Int32(MSG_PEEK) { #expect(hear(pair.b, 3) == "one") }
                #expect(isAtMark(pair.b))
                #expect(pair.b.receive(buffer.bytes, 1, Int(MSG_OOB)) == 1)
                #expect(hear(pair.b, 3) == "two")
            }
        }

        @Test("A receive that finds nothing behind the mark goes past it, as the kernel's does", arguments: ProviderUnderTest.allCases)
        func passesTheMark(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                #expect(say(pair.a, "one!", Int(MSG_OOB)) == 4)
                awaitUrgent(pair.b)
                #expect(hear(pair.b, 3) == "one")
                let byte = Buffer(1)
                // A receive of nothing leaves the urgent byte, and finds it.
                #expect(pair.b.receive(byte.bytes, 0, Int(MSG_DONTWAIT)) == 0)
                #expect(isAtMark(pair.b))
                #expect(pair.b.receive(byte.bytes, 1, Int(MSG_DONTWAIT)) == -Int(EAGAIN))
                var entry = pollfd(fd: pair.b.fd, events: Int16(POLLPRI), revents: 0)
                #expect(ss_sys_ppoll(&entry, 1, [timespec()], nil) == 0)
                #expect(say(pair.a, "two") == 3)
                #expect(hear(pair.b, 3) == "two")
            }
        }

        @Test("While cuts are not acknowledged, and TCP is full, a blocking sender waits", arguments: ProviderUnderTest.allCases)
        func blocks(_ provider: ProviderUnderTest) throws {
            try withPair(provider, onCompanion: false) { pair in
                let (a, b) = (pair.a, pair.b)
                b.session.maintain(b.fd)
                var before = 0
                while a.session.sendsOnTCP {
                    #expect(say(a, ".") == 1)
                    before += 1
                }
                #expect(say(a, "ring") == 4)
                let pattern = StreamPattern(5)
                let total = 3 << 20
                let sender = startThread {
                    #expect(say(a, "!", Int(MSG_OOB)) == 1)
                    #expect(a.send(pattern.bytes(at: 0), total, Int(MSG_OOB)) == total)
                    #expect(say(a, "end") == 3)
                }
                #expect(hear(b, before + 3) == String(repeating: ".", count: before) + "rin")
                // An urgent byte is no part of the ordinary stream, and where the last of a call that waited are is TCP's affair.
                let buffer = Buffer(1 << 16)
                var text = ""
                while !text.hasSuffix("end") {
                    let result = b.receive(buffer.bytes, buffer.count)
                    #expect(result > 0)
                    if result <= 0 { break }
                    let tail = max(0, result - 3)
                    text = String((text + String(decoding: UnsafeRawBufferPointer(start: buffer.bytes + tail, count: result - tail), as: UTF8.self)).suffix(3))
                }
                join([sender])
            }
        }
    }
}
