import Testing

// An exit test reports what failed in its process without the values. These say them.

func expect(_ condition: Bool, _ what: @autoclosure () -> String = "", line: Int = #line, file: String = #fileID) {
    if !condition { Issue.record("\(file):\(line): \(what())") }
}

func expect<T: Equatable>(_ found: T, is expected: T, _ what: @autoclosure () -> String = "", line: Int = #line, file: String = #fileID) {
    if found != expected { Issue.record("\(file):\(line): \(what()) found \(found), expected \(expected)") }
}

func expect(_ found: [String], is expected: [String], _ what: @autoclosure () -> String = "", line: Int = #line, file: String = #fileID) {
    if found == expected { return }
    var text = "\(file):\(line): \(what())"
    for index in 0..<max(found.count, expected.count) {
        let one = index < found.count ? found[index] : "(nothing)"
        let other = index < expected.count ? expected[index] : "(nothing)"
        text += one == other ? "\n    \(one)" : "\n  ! \(one)   expected: \(other)"
    }
    Issue.record("\(text)")
}
