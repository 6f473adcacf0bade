import CSocketSwitch
import Glibc
import ServiceProviders
import Session
import SocketTable
import Switch
import Testing

private func isOpen(_ fd: Int32) -> Bool { ss_sys_fcntl(fd, F_GETFD, 0) >= 0 }
private func kind(_ fd: Int32) -> UInt32 { entryKind(descriptorEntry(fd)) }

/// The library's own descriptors of this process.
private func ownDescriptors() -> [Int32] {
    (0..<Int32(SS_DESCRIPTORS)).filter { kind($0) == DescriptorKind.own }
}

/// A scene with both directions on the companion.
private func upgradedScene() throws -> Scene {
    let scene = try Scene()
    expect(scene.talk(20))
    expect(scene.isFullyOnCompanion)
    return scene
}

/// Makes `number`, which is free, the lowest free one. What else runs in the process (the testing library) may have closed
/// a lower one meanwhile.
private func makeLowestFree(_ number: Int32) {
    while true {
        let filled = Int32(ss_sys_fcntl(number - 1, F_DUPFD, 0))
        if filled < number { continue }
        _ = ss_sys_close(filled)
        return
    }
}

private func finish(_ scene: Scene, closing extra: [Int32] = []) {
    for fd in extra { _ = switchClose(fd) }
    for fd in [scene.client, scene.server, scene.listener] where kind(fd) == DescriptorKind.socket { _ = switchClose(fd) }
    expect(Scene.recorder.violations, is: [])
    expect(openHandleCount(), is: 1)
    expect(Scene.recorder.openSockets, is: 1)
}

@Suite("Descriptors of tracked sockets (WSD-C12, D1)") struct TrackingTests {
    @Test("dup: one stream, whichever descriptor is used; the companion ends with the last")
    func duplicate() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            for how in 0..<4 {
                let scene = try upgradedScene()
                let companion = recorder.lastMade - 1
                let copy: Int32
                switch how {
                case 0: copy = Int32(switchDuplicate(scene.client))
                case 1: copy = Int32(switchFileControl(scene.client, F_DUPFD, 200))
                case 2: copy = Int32(switchFileControl(scene.client, Int32(F_DUPFD_CLOEXEC), 200))
                default: copy = Int32(switchDuplicate(scene.client, onto: 300, O_CLOEXEC))
                }
                expect(copy >= 0 && socketIndex(copy) == socketIndex(scene.client), "the same socket")
                if how == 1 || how == 2 { expect(copy >= 200) }
                if how >= 2 { expect(ss_sys_fcntl(copy, F_GETFD, 0), is: 1 /* FD_CLOEXEC */) }
                expect(switchClose(scene.client), is: 0)
                expect(!isOpen(scene.client))
                scene.client = copy
                expect(scene.talk(20))
                expect(scene.isFullyOnCompanion)
                expect(recorder.count("WSPCloseSocket", of: companion), is: 0)
                finish(scene)
                expect(recorder.count("WSPCloseSocket", of: companion), is: 1)
            }
        }
    }

    @Test("dup2 onto a tracked descriptor ends what it stood for; a dup2 that fails ends nothing")
    func duplicateOnto() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let first = try upgradedScene()
            let second = try upgradedScene()
            let victim = recorder.lastMade - 1
            expect(switchDuplicate(9999, onto: second.client, 0), is: -Int(EBADF))
            expect(second.talk(5))
            // The first client's socket gets the second client's number.
            expect(switchDuplicate(first.client, onto: second.client, 0), is: Int(second.client))
            expect(recorder.count("WSPCloseSocket", of: victim), is: 1)
            var byte: UInt8 = 0
            expect(switchReceive(second.server, &byte, 1, 0), is: 0, "the second server sees the end")
            _ = switchClose(first.client)
            first.client = second.client
            expect(first.talk(20))
            expect(first.isFullyOnCompanion)
            // Something that is not a socket takes the number of one that is.
            let file = Int32(ss_sys_memfd_create("x", 0))
            expect(switchDuplicate(file, onto: first.client, 0), is: Int(first.client))
            expect(kind(first.client), is: 0)
            expect(switchReceive(first.server, &byte, 1, 0), is: 0)
            _ = switchClose(file)
            _ = switchClose(first.client)
            finish(first, closing: [second.server, second.listener])
        }
    }

    @Test("The library's own descriptors do not exist for the program")
    func ownDoNotExist() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let scene = try upgradedScene()
            let own = ownDescriptors()
            expect(own.count >= 5, "arena, and two doorbells an end: \(own)")
            expect(own.count, is: ownDescriptorCount)
            var byte: UInt8 = 0
            for fd in own {
                expect(fd > 512 && ss_sys_fcntl(fd, F_GETFD, 0) == 1, "\(fd) is high and close-on-exec")
                expect(switchClose(fd), is: -Int(EBADF))
                expect(switchDuplicate(fd), is: -Int(EBADF))
                expect(switchDuplicate(fd, onto: 400, 0), is: -Int(EBADF))
                expect(switchDuplicate(scene.client, onto: fd, 0), is: -Int(EBADF))
                expect(switchFileControl(fd, F_GETFD, 0), is: -Int(EBADF))
                expect(switchSend(fd, &byte, 1, 0), is: -Int(EBADF))
                expect(switchReceive(fd, &byte, 1, 0), is: -Int(EBADF))
                expect(isOpen(fd))
            }
            expect(scene.talk(20))
            finish(scene)
            expect(ownDescriptors().count, is: own.count - 4, "the doorbells went with the companions")
        }
    }

    @Test("close_range closes the program's descriptors, and none of the library's")
    func closeRange() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let scene = try upgradedScene()
            let own = ownDescriptors()
            let lowest = min(scene.listener, scene.client, scene.server)
            // Descriptors beyond the library's.
            let beyond = Int32(ss_sys_fcntl(scene.client, F_DUPFD_CLOEXEC, Int(own.max()! + 10)))
            expect(switchCloseRange(5, 4, 0), is: -Int(EINVAL))
            expect(switchCloseRange(UInt32(lowest), UInt32.max, 8), is: -Int(EINVAL))
            expect(scene.talk(5), "what the kernel refuses closes nothing")
            let cloexec = Int32(4)
            expect(switchCloseRange(UInt32(lowest), UInt32.max, cloexec), is: 0)
            expect(scene.talk(5), "CLOSE_RANGE_CLOEXEC closes nothing")
            expect(ss_sys_fcntl(scene.client, F_GETFD, 0), is: 1)
            expect(switchCloseRange(UInt32(lowest), UInt32.max, 0), is: 0)
            for fd in [scene.listener, scene.client, scene.server, beyond] { expect(!isOpen(fd), "\(fd)") }
            expect(ownDescriptors().count, is: own.count - 4)
            for fd in ownDescriptors() { expect(isOpen(fd)) }
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
            let next = try upgradedScene()
            finish(next)
        }
    }

    @Test("A descriptor that was closed behind the switch's back is forgotten when its number comes again")
    func stale() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            // By socket().
            let scene = try upgradedScene()
            let index = socketIndex(scene.client)
            let companion = recorder.lastMade - 1
            _ = ss_sys_close(scene.client)
            makeLowestFree(scene.client)
            let again = Int32(switchSocket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
            expect(again, is: scene.client)
            expect(recorder.count("WSPCloseSocket", of: companion), is: 1)
            expect(sessionOf(socketIndex(again)!).slot.mode.load(), is: Slot.Mode.plain)
            expect(index != nil)
            // By accept().
            _ = switchClose(again)
            makeLowestFree(again)
            _ = ss_sys_close(scene.server)
            let client = Int32(switchSocket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
            if client != scene.server {
                expect(scene.listenName.withBytes { switchConnect(client, $0, $1) }, is: 0)
                let server = Int32(switchAccept(scene.listener, nil, nil, 0))
                expect(server, is: scene.server)
                scene.server = server
            } else {
                expect(scene.listenName.withBytes { switchConnect(client, $0, $1) }, is: 0)
                scene.server = Int32(switchAccept(scene.listener, nil, nil, 0))
            }
            scene.client = client
            let fresh = Scene(client: client, server: scene.server, listener: scene.listener)
            expect(fresh.talk(20))
            expect(fresh.isFullyOnCompanion)
            finish(fresh)
            // By dup().
            let third = try upgradedScene()
            _ = ss_sys_close(third.client)
            makeLowestFree(third.client)
            expect(switchDuplicate(third.listener), is: Int(third.client))
            expect(socketIndex(third.client), is: socketIndex(third.listener))
            expect(recorder.violations, is: [])
            finish(third)
        }
    }

    @Test("The last descriptor of several goes last, whatever the order")
    func orders() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                let scene = try upgradedScene()
                let all = [scene.client, Int32(switchDuplicate(scene.client)), Int32(switchDuplicate(scene.client))]
                for (position, which) in order.enumerated() {
                    scene.client = all[which]
                    expect(scene.talk(3))
                    expect(switchClose(all[which]), is: 0)
                    if position < 2 { expect(all.contains { socketIndex($0) != nil }) }
                }
                var byte: UInt8 = 0
                expect(switchReceive(scene.server, &byte, 1, 0), is: 0)
                finish(scene)
            }
        }
    }

    @Test("Slots are given back: more sockets, one after the other, than the table holds")
    func manySockets() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            for _ in 0..<(FamilyArena.slotCount + 1000) {
                let fd = Int32(switchSocket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
                if socketIndex(fd) == nil { expect(false, "no slot"); break }
                _ = switchClose(fd)
            }
            let scene = try upgradedScene()
            finish(scene)
        }
    }
}
