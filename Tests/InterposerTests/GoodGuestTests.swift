import Foundation
import Testing

/// Ordinary programs behave with the library as without it: Tests/GoodGuest/run.py, which also runs alone and with the
/// command-line tool as its wrapper.
@Suite("Good guest", .serialized) struct GoodGuestTests {
    @Test(arguments: ["Tools", "Interface", "Runtimes", "Servers"])
    func programsBehaveTheSame(_ group: String) throws {
        let script = Library.root.appendingPathComponent("Tests/GoodGuest/run.py").path
        let (status, output) = try run(["python3", script, "--preload", Library.path, group])
        #expect(status == 0, "\(output)")
    }
}
