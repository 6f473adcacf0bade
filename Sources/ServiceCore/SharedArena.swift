import CSocketSwitch
import ControlPlane
import Glibc
import SocketTable
import StreamRing

/// The service's mapping of one family's arena. Several processes of a family pass the same memfd; it is mapped once.
package final class SharedArena {
    struct Identity: Hashable {
        var device: UInt
        var inode: UInt
    }

    enum Refusal: Error { case wrongSize, notSealed, notMemory, cannotMap, notAnArena }

    let identity: Identity
    let arena: FamilyArena
    /// Clients by their process entry. Entries without one are processes that have not connected (yet).
    var clients: [UInt64: Int] = [:]

    static func identity(of descriptor: Descriptor) -> Identity? {
        var status = stat()
        guard ss_sys_fstat(descriptor.raw, &status) == 0 else { return nil }
        return Identity(device: UInt(status.st_dev), inode: UInt(status.st_ino))
    }

    /// Maps the memfd. Only memory that cannot shrink is mapped, so that no access can raise SIGBUS; huge pages could for
    /// want of a page.
    init(_ descriptor: Descriptor, identity: Identity) throws(Refusal) {
        var status = stat()
        guard ss_sys_fstat(descriptor.raw, &status) == 0, status.st_mode & S_IFMT == S_IFREG,
            status.st_size == FamilyArena.bytes
        else { throw .wrongSize }
        let seals = ss_sys_fcntl(descriptor.raw, ss_f_get_seals, 0)
        guard seals >= 0, seals & Int(ss_seal_fixed_size) == Int(ss_seal_fixed_size) else { throw .notSealed }
        guard SharedArena.fileSystem(of: descriptor) == 0x0102_1994 /* TMPFS_MAGIC */ else { throw .notMemory }
        let address = ss_sys_mmap(nil, FamilyArena.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor.raw, 0)
        guard address > 0, let base = UnsafeMutableRawPointer(bitPattern: address) else { throw .cannotMap }
        self.identity = identity
        arena = FamilyArena(base)
        guard arena.magic.load() == FamilyArena.magic else {
            _ = ss_sys_munmap(base, FamilyArena.bytes)
            throw .notAnArena
        }
    }

    private static func fileSystem(of descriptor: Descriptor) -> Int {
        withUnsafeTemporaryAllocation(byteCount: 256, alignment: 8) { buffer in  // struct statfs, f_type first
            let address = Int(bitPattern: buffer.baseAddress!)
            return ss_syscall6(Int(SYS_fstatfs), Int(descriptor.raw), address, 0, 0, 0, 0) == 0 ? buffer.load(as: Int.self) : 0
        }
    }

    deinit { _ = ss_sys_munmap(arena.base, FamilyArena.bytes) }

    /// True when some process of the family, connected or not, still has the arena mapped.
    ///
    /// The process ids in the arena are its processes' own view and may be lies: the mapping itself is looked for, in
    /// the first few processes that there are.
    func hasLivingProcess() -> Bool {
        if !clients.isEmpty { return true }
        var looks = 0
        for process in arena.liveProcesses where looks < 8 {
            guard let pid = Int32(exactly: arena.process(process).pid.load()), pid > 0, pid != getpid(),
                ss_sys_kill(pid, 0) != -Int(ESRCH)
            else { continue }
            if isMapped(byProcess: pid) { return true }
            looks += 1
        }
        return false
    }

    private func isMapped(byProcess pid: Int32) -> Bool {
        guard let file = fopen("/proc/\(pid)/maps", "re") else { return false }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 512)
        while fgets(&line, Int32(line.count), file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            if SharedArena.isMapping(text, inode: identity.inode) { return true }
        }
        return false
    }

    /// Whether a line of /proc/PID/maps (address, permissions, offset, device, inode, path) is of this memfd.
    package static func isMapping(_ line: String, inode: UInt) -> Bool {
        let fields = line.split(separator: " ")
        return fields.count > 5 && fields[4] == "\(inode)" && fields[5].hasPrefix("/memfd:")
    }
}
