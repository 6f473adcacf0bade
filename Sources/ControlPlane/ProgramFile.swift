import CSocketSwitch
import Glibc

/// What can be told of a program before it starts: some cannot be switched, and their users should know.
package enum ProgramFile {
    package indirect enum Obstacle: Equatable, CustomStringConvertible {
        case staticallyLinked
        case changesUser
        case otherMachine
        /// It is a script.
        case interpreter(String, Obstacle)

        package var description: String {
            switch self {
            case .staticallyLinked: "is statically linked, so no library can be preloaded; it stays on TCP"
            case .changesUser: "is set-user-id or set-group-id, so the loader ignores LD_PRELOAD; it stays on TCP"
            case .otherMachine: "is not a 64-bit program of this machine; it stays on TCP"
            case .interpreter(let path, let obstacle): "is a script, and \(path) \(obstacle)"
            }
        }
    }

    /// Where execvp would find the program.
    package static func find(_ name: String, searchPath: String?) -> String? {
        if name.contains("/") { return access(name, X_OK) == 0 ? name : nil }
        for directory in (searchPath ?? "/bin:/usr/bin").split(separator: ":", omittingEmptySubsequences: false) {
            let path = (directory.isEmpty ? "." : String(directory)) + "/" + name
            var status = stat()
            if stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG, access(path, X_OK) == 0 { return path }
        }
        return nil
    }

    /// Nil when nothing speaks against it, or when nothing can be said. Of a script its interpreter counts.
    package static func obstacle(_ path: String) -> Obstacle? { obstacle(path, scripts: 4) }

    private static func obstacle(_ path: String, scripts: Int) -> Obstacle? {
        let raw = open(path, O_RDONLY | O_CLOEXEC)
        guard raw >= 0 else { return nil }
        let file = Descriptor(raw)
        var header = [UInt8](repeating: 0, count: 4096)
        let count = header.withUnsafeMutableBytes { ss_sys_pread(file.raw, $0.baseAddress, $0.count, 0) }
        if let interpreter = interpreter(header[..<max(count, 0)]) {
            guard scripts > 0, let obstacle = obstacle(interpreter, scripts: scripts - 1) else { return nil }
            return .interpreter(interpreter, obstacle)
        }
        var status = stat()
        if fstat(raw, &status) == 0, geteuid() != 0 || status.st_uid != 0, status.st_mode & (S_ISUID | S_ISGID) != 0 {
            return .changesUser
        }
        guard count >= 64, header[0..<4].elementsEqual([0x7F, 0x45, 0x4C, 0x46]) else { return nil }
        #if arch(x86_64)
        let machine: UInt16 = 62
        #else
        let machine: UInt16 = 183
        #endif
        return header.withUnsafeBytes { bytes in
            guard bytes[4] == 2, bytes.load(fromByteOffset: 18, as: UInt16.self) == machine else { return .otherMachine }
            let offset = bytes.load(fromByteOffset: 32, as: UInt64.self)
            let size = Int(bytes.load(fromByteOffset: 54, as: UInt16.self))
            let number = Int(bytes.load(fromByteOffset: 56, as: UInt16.self))
            guard size >= 56, offset < 4096, Int(offset) + size * number <= count else { return nil }
            let hasInterpreter = (0..<number).contains {
                bytes.loadUnaligned(fromByteOffset: Int(offset) + size * $0, as: UInt32.self) == 3  // PT_INTERP
            }
            return hasInterpreter ? nil : .staticallyLinked
        }
    }

    /// What the first line of a script names, as execve reads it: at most 256 bytes.
    private static func interpreter(_ file: ArraySlice<UInt8>) -> String? {
        guard file.starts(with: [0x23, 0x21]) else { return nil }
        let line = file.dropFirst(2).prefix(254).prefix { $0 != 0x0A }
        let word = line.drop { $0 == 0x20 || $0 == 0x09 }.prefix { $0 != 0x20 && $0 != 0x09 && $0 != 0 }
        return word.isEmpty ? nil : String(decoding: word, as: UTF8.self)
    }
}
