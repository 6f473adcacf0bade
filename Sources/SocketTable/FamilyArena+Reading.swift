#if !hasFeature(Embedded)
import CSocketSwitch
import StreamRing

// How the service reads an arena, which its family writes at the same time and may fill with nonsense: every index that
// is taken from it is bounded here, and a value is a snapshot that may be wrong a moment later.
extension FamilyArena {
    /// The process entries that are live.
    package var liveProcesses: [Int] {
        let count = Int(min(UInt64(FamilyArena.processCount), processHighWater.load()))
        return (0..<count).filter { process($0).state.load() == ProcessEntry.live }
    }

    /// Bytes that the family's sockets, living and closed, sent and received over companions.
    package var companionBytes: (sent: UInt64, received: UInt64) {
        var sum = (sent: retiredSent.load(), received: retiredReceived.load())
        for index in usedSlots where slot(index).kind.load() != Slot.Kind.free {
            let (sent, received) = slot(index).companionBytes
            sum.sent &+= sent
            sum.received &+= received
        }
        return sum
    }

    /// The slots that process entry `process` holds.
    package func slotsHeld(by process: Int) -> [Int] {
        var slots: [Int] = []
        let used = usedSlots
        for word in 0..<((used.upperBound + 63) / 64) {
            var held = holderWord(process, word).load()
            while held != 0 {
                let index = word * 64 + held.trailingZeroBitCount
                held &= held - 1
                if used.contains(index) { slots.append(index) }
            }
        }
        return slots
    }
}

extension ProcessEntry {
    /// The name, without control characters.
    package var text: String {
        let bytes = UnsafeRawBufferPointer(start: name, count: ProcessEntry.nameBytes).prefix { $0 != 0 }
        return String(decoding: bytes.map { $0 < 0x20 || $0 == 0x7f ? UInt8(ascii: "?") : $0 }, as: UTF8.self)
    }
}
#endif
