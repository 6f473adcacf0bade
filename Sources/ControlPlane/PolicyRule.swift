import CSocketSwitch
import Glibc

/// One rule of a policy: which connections may have a companion, and which stay on TCP.
package struct PolicyRule: Equatable, Sendable {
    package enum Action: String, Sendable { case allow, tcp }

    package struct Network: Equatable, Sendable {
        /// 4 or 16, network order. IPv4 in IPv6 clothes is IPv4.
        package var bytes: [UInt8]
        package var prefix: Int
    }

    package var action: Action
    /// Glob with `*` over the program's name; nil: any.
    package var program: String?
    package var network: Network?
    package var ports: ClosedRange<UInt16>?

    package init(action: Action, program: String? = nil, network: Network? = nil, ports: ClosedRange<UInt16>? = nil) {
        self.action = action
        self.program = program
        self.network = network
        self.ports = ports
    }

    /// Linux keeps 15 bytes of a program's name.
    package static let programNameBytes = 15

    /// As the library reads it: see `Environment` in Messages.swift.
    package var compiled: String {
        let address = network.map { network in
            "\(network.bytes.count == 4 ? 4 : 6):" + network.bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
                + "/\(network.prefix)"
        }
        let range = ports.map { "\($0.lowerBound)-\($0.upperBound)" }
        return "\(action == .allow ? "a" : "t"),\(program ?? "*"),\(address ?? "*"),\(range ?? "*")"
    }
}

/// What is wrong with a policy, and where.
package struct PolicyError: Error, Equatable, CustomStringConvertible {
    /// A file's name, or an option.
    package var source: String
    /// From 1; 0: the error is of the whole file.
    package var line: Int
    /// In characters, from 1.
    package var column: Int
    package var message: String
    package var text: String

    package init(source: String, line: Int, column: Int, message: String, text: String) {
        self.source = source
        self.line = line
        self.column = column
        self.message = message
        self.text = text
    }

    /// Of the whole file.
    package init(source: String, message: String) {
        self.init(source: source, line: 0, column: 0, message: message, text: "")
    }

    package var description: String {
        if line == 0 { return "\(source): error: \(message)" }
        // The caret stays under its place if the line has tabs.
        let indent = String(text.prefix(column - 1).map { $0 == "\t" ? "\t" : " " })
        return "\(source):\(line):\(column): error: \(message)\n  \(text)\n  \(indent)^"
    }
}

/// A policy as its user writes it: one rule a line, first match wins, no match allows.
///
///     # comment
///     allow|tcp  [program=GLOB] [address=ADDRESS[/PREFIX]] [port=N|N-M]
///     wildcard = any|per-interface
package struct PolicyFile: Equatable, Sendable {
    /// What a listener on the wildcard address gets (WSD-C14).
    package enum Wildcard: String, Sendable, CaseIterable {
        /// One companion on the wildcard.
        case any
        /// One companion for each address that a provider serves.
        case perInterface = "per-interface"
    }

    package var rules: [PolicyRule] = []
    /// nil: not said, which means `any`.
    package var wildcard: Wildcard?
    package static let maximumRules = 64

    package init(rules: [PolicyRule] = []) { self.rules = rules }

    /// Reads a whole file.
    package init(parsing text: String, source: String) throws(PolicyError) {
        var number = 0
        for line in text.split(omittingEmptySubsequences: false, whereSeparator: \.isNewline) {
            number += 1
            var scanner = RuleScanner(String(line), source: source, line: number)
            if let setting = try scanner.wildcardSetting() {
                if wildcard != nil { throw scanner.error("`wildcard` is set twice", at: setting.column) }
                wildcard = setting.value
                continue
            }
            if let rule = try PolicyFile.rule(String(line), source: source, line: number) {
                rules.append(rule)
                if rules.count > PolicyFile.maximumRules {
                    throw PolicyError(
                        source: source, line: number, column: 1, message: "more than \(PolicyFile.maximumRules) rules", text: String(line))
                }
            }
        }
    }

    /// Reads the keys of one rule, as `--allow` and `--tcp` take them.
    package static func rule(_ action: PolicyRule.Action, keys text: String, source: String) throws(PolicyError) -> PolicyRule {
        var scanner = RuleScanner(text, source: source, line: 1)
        return try scanner.keys(of: PolicyRule(action: action))
    }

    private static func rule(_ text: String, source: String, line: Int) throws(PolicyError) -> PolicyRule? {
        var scanner = RuleScanner(text, source: source, line: line)
        guard let (word, column) = scanner.nextWord() else { return nil }
        guard let action = PolicyRule.Action(rawValue: word) else {
            throw scanner.error("a line begins with `allow`, `tcp` or `wildcard`, not with `\(word)`", at: column)
        }
        return try scanner.keys(of: PolicyRule(action: action))
    }

    /// The text for SOCKSWITCH_POLICY.
    package var compiled: String {
        ((wildcard == .perInterface ? ["w,i"] : []) + rules.map(\.compiled)).joined(separator: ";")
    }
}

private struct RuleScanner {
    let text: String
    let characters: [Character]
    let source: String
    let line: Int
    var position = 0

    init(_ text: String, source: String, line: Int) {
        self.text = text
        characters = Array(text)
        self.source = source
        self.line = line
    }

    /// `column` from 0.
    func error(_ message: String, at column: Int) -> PolicyError {
        PolicyError(source: source, line: line, column: column + 1, message: message, text: text)
    }

    /// The next word and its column from 0; nil at the end or at a comment.
    mutating func nextWord() -> (String, Int)? {
        while position < characters.count, characters[position].isWhitespace { position += 1 }
        guard position < characters.count, characters[position] != "#" else { return nil }
        let start = position
        while position < characters.count, !characters[position].isWhitespace, characters[position] != "#" { position += 1 }
        return (String(characters[start..<position]), start)
    }

    /// `wildcard = VALUE`, with blanks round the `=` or without; nil: the line is something else, and nothing was read.
    mutating func wildcardSetting() throws(PolicyError) -> (value: PolicyFile.Wildcard, column: Int)? {
        guard let (first, column) = nextWord() else { return nil }
        guard first == "wildcard" || first.hasPrefix("wildcard=") else {
            position = 0
            return nil
        }
        position = column + "wildcard".count
        while position < characters.count, characters[position].isWhitespace { position += 1 }
        guard position < characters.count, characters[position] == "=" else { throw error("expected `=` after `wildcard`", at: position) }
        position += 1
        let names = PolicyFile.Wildcard.allCases.map { "`\($0.rawValue)`" }.joined(separator: " or ")
        guard let (word, valueColumn) = nextWord() else { throw error("`wildcard =` needs a value: \(names)", at: position) }
        guard let value = PolicyFile.Wildcard(rawValue: word) else { throw error("`wildcard` is \(names), not `\(word)`", at: valueColumn) }
        if let (more, moreColumn) = nextWord() { throw error("nothing follows the value, but there is `\(more)`", at: moreColumn) }
        return (value, column)
    }

    mutating func keys(of start: PolicyRule) throws(PolicyError) -> PolicyRule {
        var rule = start
        var seen: Set<String> = []
        while let (word, column) = nextWord() {
            guard let equals = word.firstIndex(of: "=") else {
                throw error("expected KEY=VALUE with the key program, address or port, found `\(word)`", at: column)
            }
            let key = String(word[..<equals])
            let value = String(word[word.index(after: equals)...])
            let valueColumn = column + key.count + 1
            guard ["program", "address", "port"].contains(key) else {
                throw error("unknown key `\(key)`; there are program, address and port", at: column)
            }
            if !seen.insert(key).inserted { throw error("`\(key)` is given twice", at: column) }
            if value.isEmpty { throw error("`\(key)=` needs a value", at: valueColumn) }
            switch key {
            case "program": rule.program = try program(value, at: valueColumn)
            case "address": rule.network = try network(value, at: valueColumn)
            default: rule.ports = try ports(value, at: valueColumn)
            }
        }
        return rule
    }

    func program(_ value: String, at column: Int) throws(PolicyError) -> String? {
        for (offset, character) in value.enumerated() where character == "," || character == ";" || character == "/" {
            throw error("a program's name has no `\(character)`; it is the file name without its directory", at: column + offset)
        }
        for (offset, character) in value.enumerated() where "?[]{}".contains(character) {
            throw error("the only wildcard is `*`", at: column + offset)
        }
        if value == "*" { return nil }
        if !value.contains("*") { return String(decoding: Array(value.utf8.prefix(PolicyRule.programNameBytes)), as: UTF8.self) }
        if value.utf8.filter({ $0 != UInt8(ascii: "*") }).count > PolicyRule.programNameBytes {
            throw error("Linux keeps \(PolicyRule.programNameBytes) bytes of a program's name: this can never match", at: column)
        }
        return value
    }

    func network(_ value: String, at column: Int) throws(PolicyError) -> PolicyRule.Network? {
        if value == "*" { return nil }
        let slash = value.firstIndex(of: "/")
        var host = String(value[..<(slash ?? value.endIndex)])
        if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        var bytes = [UInt8](repeating: 0, count: 16)
        if inet_pton(AF_INET, host, &bytes) == 1 {
            bytes.removeLast(12)
        } else if inet_pton(AF_INET6, host, &bytes) != 1 {
            throw error("`\(host)` is not an IPv4 or IPv6 address", at: column)
        }
        var prefix = bytes.count * 8
        if let slash {
            let digits = value[value.index(after: slash)...]
            let digitsColumn = column + value.distance(from: value.startIndex, to: slash) + 1
            guard let number = decimal(digits), number <= prefix else {
                throw error("the prefix length must be from 0 to \(prefix)", at: digitsColumn)
            }
            prefix = number
        }
        let isMapped = bytes.count == 16 && bytes[..<12].elementsEqual([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255])
        if isMapped, prefix >= 96 {
            bytes.removeFirst(12)
            prefix -= 96
        }
        var masked = bytes
        for bit in prefix..<(bytes.count * 8) { masked[bit / 8] &= ~(0x80 >> UInt8(bit % 8)) }
        if masked != bytes {
            throw error("the address has bits beyond its prefix; write \(text(of: masked))/\(prefix)", at: column)
        }
        return PolicyRule.Network(bytes: bytes, prefix: prefix)
    }

    func text(of address: [UInt8]) -> String {
        var buffer = [CChar](repeating: 0, count: 64)
        guard inet_ntop(address.count == 4 ? AF_INET : AF_INET6, address, &buffer, 64) != nil else { return "" }
        return String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    func ports(_ value: String, at column: Int) throws(PolicyError) -> ClosedRange<UInt16>? {
        if value == "*" { return nil }
        let parts = value.split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false)
        let numbers = parts.compactMap { decimal($0) }
        guard numbers.count == parts.count, let low = numbers.first, let high = numbers.last, high <= 65535, low <= 65535 else {
            throw error("a port is a number from 0 to 65535, or two with `-` between them", at: column)
        }
        if low > high { throw error("the range ends before it begins", at: column) }
        return UInt16(low)...UInt16(high)
    }

    func decimal(_ digits: Substring) -> Int? {
        guard !digits.isEmpty, digits.utf8.count <= 5, digits.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }) else { return nil }
        return Int(digits)
    }
}
