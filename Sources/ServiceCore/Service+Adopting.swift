import CSocketSwitch
import ControlPlane
import Glibc
import SocketTable

// A service that is started in the place of one that ended finds the programs that were there before it. They do not know of the
// change before they have something to announce, and until then `ps` would not show what runs, `off` would bring nothing
// back, and an `off` of the former service would stay in force for ever.

extension Service {
    /// Takes over the families of all processes that this service may look into and that belong to its path. Returns how many.
    ///
    /// They are found by the descriptor of their arena, which must be as good as one that comes with a hello.
    package func adoptFamilies() -> Int {
        var count = 0
        let mark = Array(configuration.path.utf8).withUnsafeBytes { ss_mark($0.baseAddress, $0.count) }
        Service.forEachNumber(in: "/proc") { pid in
            let descriptors = "/proc/\(pid)/fd"
            Service.forEachNumber(in: descriptors) { number in
                let path = "\(descriptors)/\(number)"
                guard hasRoomForOrphan, Service.isArena(path) else { return }
                // By now it may be anything: a terminal, a pipe.
                let opened = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)
                guard opened >= 0 else { return }
                let descriptor = Descriptor(opened)
                guard let identity = SharedArena.identity(of: descriptor), arenas[identity] == nil,
                    let arena = try? SharedArena(descriptor, identity: identity),
                    arena.arena.service.load() == mark
                else { return }
                adopt(arena)
                count += 1
            }
        }
        return count
    }

    private static func isArena(_ path: String) -> Bool {
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: 64) { buffer in
            let length = readlink(path, buffer.baseAddress!, 64)
            return length > 0 && String(decoding: buffer.prefix(length).map { UInt8(bitPattern: $0) }, as: UTF8.self) == "/memfd:sockswitch (deleted)"
        }
    }

    private static func forEachNumber(in path: String, _ body: (Int32) -> Void) {
        guard let directory = opendir(path) else { return }
        defer { closedir(directory) }
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if let number = Int32(name) { body(number) }
        }
    }
}
