import CSocketSwitch
import Glibc
import Session
import SocketTable
import Switch
import Testing

/// Lets the ten milliseconds pass within which address lists are not asked about again.
private func letAddressesAge() {
    let start = ss_monotonic_ns()
    while ss_monotonic_ns() - start < 20_000_000 { _ = ss_sys_sched_yield() }
}

private let stream = Int32(SOCK_STREAM.rawValue)

@Suite("Which sockets reach a provider (WSD-C2 … C4, C8, I5, I6, N1)") struct ProviderChoiceTests {
    @Test("WSD-C2: raw, datagram, Unix and foreign stream sockets never do")
    func neverOffered() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let before = recorder.lines
            let datagram = Int32(SOCK_DGRAM.rawValue)
            let kinds: [(Int32, Int32, Int32)] = [
                (AF_INET, datagram, 0), (AF_INET6, datagram, 0), (AF_INET, Int32(SOCK_RAW.rawValue), Int32(IPPROTO_ICMP)),
                (AF_INET6, Int32(SOCK_RAW.rawValue), Int32(IPPROTO_ICMPV6)), (AF_UNIX, stream, 0), (AF_UNIX, datagram, 0),
                (AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0), (AF_INET, stream, 132 /* SCTP */), (AF_INET, stream, 262 /* MPTCP */),
                (AF_INET, Int32(SOCK_SEQPACKET.rawValue), 132), (AF_NETLINK, datagram, 0), (AF_INET, datagram, 136 /* UDP-Lite */),
            ]
            for (family, type, proto) in kinds {
                let made = switchSocket(family, type, proto)
                guard made >= 0 else { continue }  // this machine, or this user, has no such sockets
                let fd = Int32(made)
                expect(socketIndex(fd) == nil, "family \(family) type \(type) protocol \(proto) is not tracked")
                if family == AF_INET || family == AF_INET6 {
                    let name = SocketName(family == AF_INET ? "127.0.0.1" : "::1", 0)
                    _ = name.withBytes { switchBind(fd, $0, $1) }
                    let target = SocketName(family == AF_INET ? "127.0.0.1" : "::1", 9)
                    _ = switchFileControl(fd, F_SETFL, Int(O_NONBLOCK))
                    _ = target.withBytes { switchConnect(fd, $0, $1) }
                }
                _ = switchListen(fd, 1)
                var byte: UInt8 = 1
                _ = switchSend(fd, &byte, 1, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
                _ = switchReceive(fd, &byte, 1, Int32(MSG_DONTWAIT))
                _ = switchClose(fd)
            }
            expect(recorder.lines, is: before)
        }
    }

    @Test("WSD-C1, C3, C4: socket, options and bind go to TCP/IP alone; listen and connect decide")
    func bindIsTCP() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let before = recorder.lines
            let free = ss_sys_fcntl(0, F_DUPFD, 0)
            _ = ss_sys_close(Int32(free))
            let fd = Int32(switchSocket(AF_INET, stream | Int32(SOCK_CLOEXEC.rawValue), Int32(IPPROTO_TCP)))
            expect(Int(fd), is: free, "WSD-C12: the lowest free descriptor, as without the switch")
            Scene.set(fd, (SOL_SOCKET, SO_REUSEADDR, 1))
            expect(SocketName("127.0.0.1", 0).withBytes { switchBind(fd, $0, $1) }, is: 0)
            expect(recorder.lines, is: before)
            expect(switchListen(fd, 3), is: 0)
            let local = try #require(SocketName.local(fd))
            let made = recorder.lastMade
            expect(recorder.lines(of: made).contains("#\(made) WSPBind \(local)"))
            // A second listen only changes TCP's backlog.
            let lines = recorder.lines
            expect(switchListen(fd, 4), is: 0)
            expect(recorder.lines, is: lines)
            _ = switchClose(fd)
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("WSD-C8: fully qualified addresses; the wildcard for who listens on all, IPv4 and IPv6")
    func addresses() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let cases: [(String, String)] = [
                ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1"), ("::", "127.0.0.1"),
                ("127.0.0.1", "::ffff:127.0.0.1"),
            ]
            for (listen, target) in cases {
                let first = recorder.lastMade == 0 ? 2 : recorder.lastMade + 1
                let scene = try Scene(listen, connectTo: target)
                let what = "\(listen) from \(target)"
                let family = scene.listenName.family == AF_INET ? "AF_INET" : "AF_INET6"
                expect(recorder.lines(of: first).first ?? "", is: "#\(first) WSPSocket \(family) type 1 protocol 6", what)
                expect(scene.talk(20), what)
                expect(scene.isFullyOnCompanion, what)
                let binds = recorder.calls.filter { $0.name == "WSPBind" && $0.companion >= first }
                expect(binds.map(\.arguments), is: ["\(scene.listenName)", "\(SocketName.local(scene.client)!)"], what)
                let connects = recorder.calls.filter { $0.name == "WSPConnect" }
                expect(connects.last?.arguments ?? "", is: "\(SocketName.peer(scene.client)!) pending", what)
                scene.close()
            }
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("WSD-N1: what no provider's subnet holds stays with TCP, and ps says so")
    func outside() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            recorder.addresses = [("10.99.0.1", 16), ("fd00:99::1", 64)]
            for address in ["127.0.0.1", "::1"] {
                let scene = try Scene(address)
                expect(scene.talk(30))
                for fd in [scene.listener, scene.client, scene.server] { expect(scene.reason(fd), is: .noProvider, address) }
                scene.close()
            }
            expect(recorder.count("WSPBind"), is: 0)
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("WSD-N1: a subnet ends where its prefix says")
    func prefix() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            for (addresses, isServed) in [([("127.128.0.1", UInt32(9))], false), ([("127.0.0.9", 9)], true)] {
                expect(switchRestartForTests(provider: RecordingProvider.startup))
                recorder.begin()
                recorder.addresses = addresses
                let scene = try Scene()
                expect(scene.talk(20))
                expect(scene.isFullyOnCompanion, is: isServed, "\(addresses)")
                expect(scene.reason(scene.client), is: isServed ? .none : .noProvider, "\(addresses)")
                scene.close()
            }
            expect(recorder.violations, is: [])
        }
    }

    @Test("A destination that the policy keeps on TCP reaches no provider; the other end's policy is its own")
    func policyForDestinations() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            expect(Policy.ofProcess.parse(text: "t,*,4:7f000002/32,*", program: "x"))
            let scene = try Scene("0.0.0.0", connectTo: "127.0.0.2")
            expect(scene.talk(30))
            expect(scene.reason(scene.client), is: .policy)
            expect(Scene.recorder.count("WSPConnect"), is: 0)
            expect(Scene.recorder.count("WSPListen"), is: 1)
            expect(scene.reason(scene.server) != .policy)
            scene.close()
            let other = try Scene("0.0.0.0", connectTo: "127.0.0.1")
            expect(other.talk(30))
            expect(other.isFullyOnCompanion)
            other.close()
            expect(Scene.recorder.violations, is: [])
        }
    }

    @Test("WSD-L1: a wildcard listener gets a companion wherever the provider has an address")
    func wildcardElsewhere() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            recorder.addresses = [("10.99.0.1", 16)]
            let scene = try Scene("0.0.0.0", connectTo: "127.0.0.1")
            expect(recorder.count("WSPListen"), is: 1)
            expect(scene.talk(30))
            expect(scene.reason(scene.client), is: .noProvider)
            expect(!scene.isFullyOnCompanion)
            scene.close()
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("WSD-I6: after an address change the list is asked for again, on the same socket")
    func addressChange() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            recorder.addresses = [("10.99.0.1", 16)]
            let before = try Scene()
            expect(before.reason(before.client), is: .noProvider)
            before.close()
            letAddressesAge()
            let still = try Scene()
            expect(still.reason(still.client), is: .noProvider)
            expect(recorder.count("SIO_ADDRESS_LIST_QUERY"), is: 1, "nothing had changed")
            expect(recorder.count("SIO_ADDRESS_LIST_CHANGE") >= 1)
            still.close()
            recorder.addresses = [("127.0.0.1", 8)]
            recorder.addressesChanged = true
            letAddressesAge()
            let after = try Scene()
            expect(recorder.count("SIO_ADDRESS_LIST_QUERY"), is: 2)
            expect(Set(recorder.calls.filter { $0.name.hasPrefix("SIO_ADDRESS") }.map(\.companion)), is: [1])
            expect(after.talk(20))
            expect(after.isFullyOnCompanion)
            after.close()
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    /// Needs a network of its own, which root can make.
    @Test("WSD-I6: a change that TCP/IP sees makes the switch ask every provider again", .enabled(if: geteuid() == 0))
    func addressChangeSeenByTCP() async {
        await #expect(processExitsWith: .success) {
            guard unshare(Int32(CLONE_NEWNET)) == 0 else { return }
            func set(_ interface: String, _ request: UInt, _ fill: (UnsafeMutableRawPointer) -> Void) {
                let fd = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
                var ifreq = [UInt8](repeating: 0, count: 40)
                ifreq.replaceSubrange(0..<interface.utf8.count, with: interface.utf8)
                ifreq.withUnsafeMutableBytes {
                    fill($0.baseAddress! + 16)
                    expect(ss_sys_ioctl(fd, request, $0.baseAddress), is: 0, interface)
                }
                close(fd)
            }
            set("lo", 0x8914 /* SIOCSIFFLAGS */) { $0.storeBytes(of: 0x41 /* IFF_UP | IFF_RUNNING */, as: UInt16.self) }
            Scene.begin()
            let recorder = Scene.recorder
            recorder.addresses = [("10.99.0.1", 16)]
            let before = try Scene()
            expect(before.reason(before.client), is: .noProvider)
            before.close()
            letAddressesAge()
            let still = try Scene()
            still.close()
            expect(recorder.count("SIO_ADDRESS_LIST_QUERY"), is: 1)
            recorder.addresses = [("10.99.0.1", 16), ("127.0.0.1", 8)]
            set("lo:1", 0x8916 /* SIOCSIFADDR */) { address in
                SocketName("10.99.0.1", 0).withBytes { name, length in _ = memcpy(address, name, Int(length)) }
            }
            letAddressesAge()
            let after = try Scene()
            expect(recorder.count("SIO_ADDRESS_LIST_QUERY"), is: 2)
            expect(after.talk(20))
            expect(after.isFullyOnCompanion)
            after.close()
            expect(recorder.violations, is: [])
        }
    }

    @Test("Options that only the kernel can honour keep the socket from any provider")
    func optionsForTCP() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let scene = try Scene(clientOptions: [(SOL_SOCKET, SO_OOBINLINE, 1)])
            expect(scene.reason(scene.client), is: .unsupportedOption)
            expect(recorder.count("WSPBind"), is: 1, "the listener's alone")
            expect(scene.talk(30))
            expect(!scene.isFullyOnCompanion)
            scene.close()
            expect(recorder.violations, is: [])
        }
    }
}
