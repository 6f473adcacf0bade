import ControlPlane
import Testing

@Suite("Policy files") struct PolicyFileTests {
    private func error(_ text: String) -> PolicyError? {
        do throws(PolicyError) {
            _ = try PolicyFile(parsing: text, source: "p")
            return nil
        } catch {
            return error
        }
    }

    @Test("A file compiles to the text that the library reads")
    func compiles() throws {
        let policy = try PolicyFile(parsing: """
            # redis
            tcp    program=redis*  port=7000-7005   # not these

            allow\tport=6379 address=127.0.0.1 program=redis-server
            tcp address=10.0.0.0/8
            tcp address=[2001:db8::]/32
            tcp address=::1
            tcp address=::ffff:10.0.0.0/104
            allow port=* program=* address=*
            allow
            """, source: "p")
        #expect(policy.compiled.split(separator: ";") == [
            "t,redis*,*,7000-7005", "a,redis-server,4:7f000001/32,6379-6379", "t,*,4:0a000000/8,*",
            "t,*,6:20010db8000000000000000000000000/32,*", "t,*,6:00000000000000000000000000000001/128,*",
            "t,*,4:0a000000/8,*", "a,*,*,*", "a,*,*,*",
        ])
    }

    @Test("WSD-C14: what wildcard listeners get", arguments: [
        ("wildcard = per-interface", "w,i"), ("wildcard=per-interface", "w,i"), ("wildcard =per-interface # why", "w,i"), ("wildcard = any", ""),
        ("tcp port=1\n  wildcard= per-interface\nallow", "w,i;t,*,*,1-1;a,*,*,*"),
    ])
    func wildcard(text: String, compiled: String) throws {
        #expect(try PolicyFile(parsing: text, source: "p").compiled == compiled)
    }

    @Test("A long program name is cut to what Linux keeps")
    func longName() throws {
        #expect(try PolicyFile(parsing: "tcp program=a-very-long-program-name", source: "p").compiled == "t,a-very-long-pro,*,*")
    }

    @Test("An error says where it is", arguments: [
        ("deny", 1, 1), ("allow\n  tpc port=1", 2, 3), ("allow prot=1", 1, 7), ("allow port", 1, 7), ("allow port=", 1, 12),
        ("allow port=x", 1, 12), ("allow port=65536", 1, 12), ("allow port=9-1", 1, 12), ("allow port=1-", 1, 12), ("allow port=-1", 1, 12),
        ("allow port=123456789012345678901", 1, 12), ("allow address=1.2.3", 1, 15), ("allow address=10.0.0.0/33", 1, 24),
        ("allow address=10.0.0.1/8", 1, 15), ("allow address=10.0.0.0/", 1, 24), ("allow address=[::1", 1, 15),
        ("allow address=example.com", 1, 15), ("allow port=1 port=2", 1, 14), ("allow program=a,b", 1, 16),
        ("allow program=/bin/x", 1, 15), ("allow program=re?is", 1, 17), ("allow program=*much-too-long-a-name", 1, 15),
        ("\n\nallow port=1 äöü=3", 3, 14), ("wildcard", 1, 9), ("wildcard any", 1, 10), ("wildcard =", 1, 11), ("wildcard = all", 1, 12),
        ("wildcard=per-interface # here\n\n wildcard = any", 3, 2), ("wildcard = any port=1", 1, 16), ("wildcards = any", 1, 1),
    ])
    func errors(text: String, line: Int, column: Int) throws {
        let found = try #require(error(text))
        #expect(found.line == line && found.column == column, "\(found)")
    }

    @Test("The caret stands under the place, tabs or not")
    func caret() throws {
        let found = try #require(error("allow\tport=1\tprot=2"))
        #expect(found.description == "p:1:14: error: unknown key `prot`; there are program, address and port\n  allow\tport=1\tprot=2\n       \t      \t^")
    }

    @Test("Sixty-four rules and no more")
    func tooMany() {
        #expect(error(String(repeating: "allow port=1\n", count: 64)) == nil)
        #expect(error(String(repeating: "allow port=1\n", count: 65))?.line == 65)
    }

    @Test("An option takes the same keys")
    func options() throws {
        #expect(try PolicyFile.rule(.tcp, keys: "program=redis* port=6379", source: "--tcp").compiled == "t,redis*,*,6379-6379")
        #expect(try PolicyFile.rule(.tcp, keys: "", source: "--tcp").compiled == "t,*,*,*")
    }
}
