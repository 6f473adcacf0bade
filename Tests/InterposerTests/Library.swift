import Foundation

/// The library that `swift build` made, beside this test's executable.
enum Library {
    static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    static var path: String {
        get throws {
            let executable = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
            var directory = URL(fileURLWithPath: executable).deletingLastPathComponent()
            // A test bundle may be a folder or two further down.
            for _ in 0..<4 {
                let candidate = directory.appendingPathComponent("libsockswitch.so").path
                if FileManager.default.fileExists(atPath: candidate) { return candidate }
                directory.deleteLastPathComponent()
            }
            throw Missing(what: "libsockswitch.so beside \(executable)")
        }
    }

    /// The names in Sources/Interposer/exports.map.
    static var exportList: Set<String> {
        get throws {
            let text = try String(contentsOf: root.appendingPathComponent("Sources/Interposer/exports.map"), encoding: .utf8)
            return Set(
                text.split(separator: "\n").map { $0.trimmingCharacters(in: .whitespaces) }
                    .filter { $0.hasSuffix(";") && !$0.contains("*") && !$0.contains("}") }.map { String($0.dropLast()) })
        }
    }

    /// The names in Sources/Interposer/functions.order.
    static var orderedFunctions: [String] {
        get throws {
            let text = try String(contentsOf: root.appendingPathComponent("Sources/Interposer/functions.order"), encoding: .utf8)
            return text.split(separator: "\n").map(String.init).filter { !$0.hasPrefix("#") }
        }
    }
}

struct Missing: Error { let what: String }

/// Ends with the status and the standard output of a command that is found through PATH.
func run(_ command: [String]) throws -> (status: Int32, output: String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = command
    process.standardInput = FileHandle.nullDevice
    let pipe = Pipe()
    process.standardOutput = pipe
    try process.run()
    let data = pipe.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return (process.terminationStatus, String(decoding: data, as: UTF8.self))
}

/// The words of each line that a command prints.
func words(_ command: String...) throws -> [[String]] {
    let (status, output) = try run(command)
    guard status == 0 else { throw Missing(what: command.joined(separator: " ")) }
    return output.split(separator: "\n").map { $0.split(whereSeparator: \.isWhitespace).map(String.init) }
}
