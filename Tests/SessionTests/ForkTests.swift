import Glibc
import SessionTestSupport
import Testing

extension SessionTests {
    /// Rings and positions lie in memory that a family shares (WSD-D1).
    @Suite("Forked children", .serialized) struct ForkTests {
        @Test("Parent and children send and receive on one session, byte-exact", arguments: [1, 3])
        func family(children: Int) throws {
            let seed = streamSeed("\(children) children")
            let seconds = (environmentNumber("STREAM_SECONDS") ?? 4) * 0.4
            // Beside the test runner's executable.
            var path = [CChar](repeating: 0, count: 4096)
            let length = readlink("/proc/self/exe", &path, 4095)
            let own = String(decoding: path[0..<max(length, 0)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
            let helper = own.split(separator: "/").dropLast().map { "/" + $0 }.joined() + "/SessionForkHelper"
            let arguments = [helper, "\(seed)", "\(seconds)", "\(children)", "1000"]
            var list: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
            defer { for item in list { free(item) } }
            var child: pid_t = 0
            try #require(posix_spawn(&child, helper, nil, nil, &list, environ) == 0, "no helper at \(helper)")
            var status: Int32 = 0
            #expect(waitpid(child, &status, 0) == child)
            #expect(status == 0)
        }
    }
}
