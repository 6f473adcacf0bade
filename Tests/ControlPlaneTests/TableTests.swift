import ControlPlane
import Testing

@Suite("Output") struct OutputTests {
    @Test("Bytes are short", arguments: [
        (0, "0"), (1023, "1023"), (1024, "1.0K"), (1536, "1.5K"), (10240, "10K"), (1 << 20, "1.0M"), ((1 << 20) - 1, "1.0M"),
        (5 << 30, "5.0G"), (UInt64.max, "16E"),
    ] as [(UInt64, String)])
    func bytes(count: UInt64, text: String) { #expect(shortBytes(count) == text) }

    @Test("Columns are aligned and lines have no blanks at their end")
    func table() {
        var table = Table([("N", .right), ("NAME", .left)])
        table.add(["1", "a"])
        table.add(["100", ""])
        #expect(table.text == "  N  NAME\n  1  a\n100")
    }

    @Test("A report goes through JSON unchanged, under the documented keys")
    func json() throws {
        let socket = SocketReport(
            pids: [7, 9], program: "x", kind: .accepted, local: "127.0.0.1:1", peer: "[::1]:2", sendCarrier: .companion,
            receiveCarrier: .tcp, bytes: .init(tcpSent: 1, tcpReceived: 2, companionSent: 3, companionReceived: 4),
            carrierChanges: 5, reason: "notInvited", reasonText: "because")
        let bytes = encodeJSON(socket)
        #expect(try decodeJSON(SocketReport.self, bytes) == socket)
        #expect(String(decoding: bytes, as: UTF8.self) == """
            {"bytes":{"companionReceived":4,"companionSent":3,"tcpReceived":2,"tcpSent":1},"carrierChanges":5,"kind":"accepted",\
            "local":"127.0.0.1:1","peer":"[::1]:2","pid":7,"pids":[7,9],"program":"x","reason":"notInvited","reasonText":"because",\
            "receiveCarrier":"tcp","sendCarrier":"companion"}
            """)
    }
}
