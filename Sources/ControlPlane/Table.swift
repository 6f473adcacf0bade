/// Text in aligned columns.
package struct Table {
    package enum Alignment: Sendable { case left, right }

    private let columns: [(title: String, alignment: Alignment)]
    private var rows: [[String]] = []

    package init(_ columns: [(title: String, alignment: Alignment)]) { self.columns = columns }

    package mutating func add(_ row: [String]) {
        precondition(row.count == columns.count)
        rows.append(row)
    }

    package var text: String {
        let all = [columns.map(\.title)] + rows
        let widths = columns.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
        return all.map { row in
            let cells = columns.indices.map { column in
                let padding = String(repeating: " ", count: widths[column] - row[column].count)
                return columns[column].alignment == .left ? row[column] + padding : padding + row[column]
            }
            let line = cells.joined(separator: "  ")
            return String(line.reversed().drop { $0 == " " }.reversed())
        }.joined(separator: "\n")
    }
}

/// `999`, `1.2K`, `34M`: binary multiples, at most four characters for what fits.
package func shortBytes(_ count: UInt64) -> String {
    guard count >= 1024 else { return "\(count)" }
    var value = Double(count)
    for unit in ["K", "M", "G", "T", "P", "E"] {
        value /= 1024
        if value < 9.95 {
            let tenths = Int((value * 10).rounded())
            return "\(tenths / 10).\(tenths % 10)\(unit)"
        }
        if value < 1023.5 || unit == "E" { return "\(Int(value.rounded()))\(unit)" }
    }
    return "\(count)"
}

extension ServiceReport {
    /// What `sockswitch ps` prints.
    package func table(includingFresh: Bool) -> String {
        var table = Table([
            ("PID", .right), ("PROGRAM", .left), ("KIND", .left), ("LOCAL", .left), ("PEER", .left), ("SEND", .left),
            ("RECV", .left), ("COMPANION OUT/IN", .right), ("TCP OUT/IN", .right), ("WHY ON TCP", .left),
        ])
        for socket in sockets where includingFresh || socket.kind != .fresh {
            let pid = socket.pids.count > 1 ? "\(socket.pid)+\(socket.pids.count - 1)" : "\(socket.pid)"
            let isConnection = socket.kind == .connected || socket.kind == .accepted
            table.add([
                pid, socket.program, socket.kind.rawValue, socket.local.isEmpty ? "-" : socket.local,
                socket.peer.isEmpty ? "-" : socket.peer, isConnection ? socket.sendCarrier.rawValue : "-",
                isConnection ? socket.receiveCarrier.rawValue : "-",
                isConnection ? "\(shortBytes(socket.bytes.companionSent))/\(shortBytes(socket.bytes.companionReceived))" : "-",
                isConnection ? "\(shortBytes(socket.bytes.tcpSent))/\(shortBytes(socket.bytes.tcpReceived))" : "-",
                socket.reason == "none" ? "" : "\(socket.reason): \(socket.reasonText)",
            ])
        }
        return table.text
    }
}
