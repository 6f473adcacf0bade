import CSocketSwitch
import Glibc
import Rendezvous
import ServiceProviders
import SocketTable
import StreamRing
import Testing

/// A family's arena with one process, as the switch makes it.
final class TestArena {
    let descriptor: Int32
    let arena: FamilyArena

    init() throws {
        descriptor = Int32(ss_sys_memfd_create("test arena", ss_mfd_cloexec))
        try #require(ss_sys_ftruncate(descriptor, Int64(FamilyArena.bytes)) == 0)
        let address = ss_sys_mmap(nil, FamilyArena.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor, 0)
        arena = FamilyArena(try #require(UnsafeMutableRawPointer(bitPattern: address)))
        arena.initialize()
        #expect(arena.addProcess(pid: UInt64(getpid())) == 0)
    }

    var mailbox: Word { arena.process(0).mailbox }

    func remove() {
        _ = ss_sys_munmap(arena.base, FamilyArena.bytes)
        _ = ss_sys_close(descriptor)
    }
}

/// A provider with a service that the test plays.
final class Setting {
    let provider = SharedMemory()
    let service: ScriptedService
    let arena: TestArena
    let openBefore: Set<Int32>

    init() throws {
        openBefore = openDescriptors()
        service = try ScriptedService()
        arena = try TestArena()
        service.path.withCString {
            sharedMemoryProviderConfigure(servicePath: $0, arenaDescriptor: arena.descriptor, arena: arena.arena.base, process: 0)
        }
    }

    /// Everything ends; nothing is left open.
    func end() {
        provider.end()
        service.remove()
        arena.remove()
        #expect(openDescriptors() == openBefore)
    }

    /// Raises the mailbox word, as the service does once it has sent something.
    func delivered() { arena.mailbox.add(1) }

    func connector(_ connection: TCPConnection, slot: UInt64, generation: UInt64 = 1) -> SOCKET {
        let socket = provider.socket()
        #expect(provider.bind(socket, connection.connectorAddress) == .done)
        let base = SOCKSWITCH_OFFER(BaseSocket: connection.connector, Flags: 0, Cookie: slot | generation << 20)
        #expect(provider.ioctl(socket, Int(SIO_SOCKSWITCH_BASE_SOCKET), input: base) == .done)
        #expect(provider.select(socket, Int(FD_CONNECT)) == .done)
        return socket
    }

    func listener(_ connection: TCPConnection) -> SOCKET {
        let socket = provider.socket()
        #expect(provider.bind(socket, connection.listenerAddress) == .done)
        #expect(provider.listen(socket) == .done)
        #expect(provider.select(socket, Int(FD_ACCEPT)) == .done)
        return socket
    }

    func offer(_ listener: SOCKET, _ connection: TCPConnection, slot: UInt64, generation: UInt64 = 1) -> Outcome {
        provider.ioctl(
            listener, Int(SIO_SOCKSWITCH_OFFER),
            input: SOCKSWITCH_OFFER(BaseSocket: connection.acceptor, Flags: 0, Cookie: slot | generation << 20))
    }

    /// Takes the connection and its hello.
    func greeted() {
        #expect(service.accept())
        let hello = service.receive()
        #expect(hello?.kind == MessageKind.hello && hello?.descriptorCount == 1)
    }

    func accept(_ listener: SOCKET, _ condition: LPCONDITIONPROC?, data: UInt = 0) -> (SOCKET, Int32) {
        var error: Int32 = 0
        let socket = provider.calls.lpWSPAccept(listener, nil, nil, condition, data, &error)
        return (socket, socket == SOCKET.max ? error : 0)
    }
}

extension ServiceProviders {
    @Suite struct Rendezvous {
        @Test("both ends announce, are paired and talk; the condition function sees who calls (WSD-N2, L2, L4)")
        func paired() throws {
            let setting = try Setting()
            let provider = setting.provider
            let connection = try TCPConnection()
            let listener = setting.listener(connection)
            setting.greeted()
            let listen = setting.service.receive()
            #expect(listen?.kind == MessageKind.listen)
            let connector = setting.connector(connection, slot: 5, generation: 9)
            #expect(provider.connect(connector, connection.listenerAddress) == .failed(EINPROGRESS))
            #expect(provider.connect(connector, connection.listenerAddress) == .failed(EALREADY))
            #expect(setting.offer(listener, connection, slot: 6, generation: 1 << 40) == .done)
            #expect(setting.offer(listener, connection, slot: 6, generation: 1 << 40) == .failed(EALREADY))
            let announced = [setting.service.receive(), setting.service.receive()]
            #expect(announced.map { $0?.slot } == [5, 6])
            #expect(announced.map { $0?.generation } == [9, 1 << 40])
            #expect(announced.map { $0?.role } == [Role.connector, Role.acceptor])
            #expect(announced.map { $0?.peerPort } == [listen?.port, try #require(announced[1]).peerPort])
            #expect(setting.service.receive() == nil)
            #expect(provider.events(connector).lNetworkEvents == 0)

            let ends = ScriptedService.Ends()
            setting.service.pair(slot: 5, generation: 9, side: 0, ends)
            setting.service.pair(slot: 6, generation: 1 << 40, side: 1, ends)
            ends.close()
            setting.delivered()
            let connected = provider.events(connector)
            #expect(connected.lNetworkEvents == Int32(FD_CONNECT) && connected.iErrorCode.4 == 0)
            #expect(provider.events(connector).lNetworkEvents == 0)  // once
            #expect(provider.events(listener).lNetworkEvents == Int32(FD_ACCEPT))

            struct Seen {
                var cookie: UInt64 = 0
                var port: UInt16 = 0
            }
            var seen = Seen()
            let (accepted, error) = withUnsafeMutablePointer(to: &seen) {
                setting.accept(
                    listener,
                    { caller, callee, data in
                        let seen = UnsafeMutablePointer<Seen>(bitPattern: data)!
                        seen.pointee.cookie = callee!.pointee.buf.load(as: SOCKSWITCH_OFFER.self).Cookie
                        seen.pointee.port = UInt16(bigEndian: caller!.pointee.buf.load(fromByteOffset: 2, as: UInt16.self))
                        return Int32(CF_ACCEPT)
                    }, data: UInt(bitPattern: $0))
            }
            #expect(error == 0)
            #expect(seen.cookie == 6 | (1 << 40) << 20 && seen.port == announced[1]?.peerPort)
            #expect(provider.events(listener).lNetworkEvents == 0)
            #expect(setting.accept(listener, nil).1 == EAGAIN)

            #expect(provider.send(connector, [[1, 2, 3]]) == .done)
            #expect(provider.receive(accepted) == (.done, [1, 2, 3]))
            #expect(provider.ring(accepted) == .done)
            #expect(provider.silence(connector) == .done)
            for socket in [connector, accepted, listener] {
                let own = socket == listener ? -1 : provider.notification(socket)
                if own >= 0 {
                    // High, close-on-exec, in the descriptor table.
                    #expect(own > 512 && descriptorEntry(own) >> 28 == DescriptorKind.own)
                    #expect(fcntl(own, F_GETFD) == FD_CLOEXEC)
                }
                #expect(provider.close(socket) == .done)
            }
            #expect(setting.service.receive()?.kind == MessageKind.unlisten)
            connection.close()
            setting.end()
        }

        @Test("CF_REJECT: the accept fails with ECONNREFUSED and the peer is told; CF_DEFER keeps the offer (WSD-L4)")
        func rejected() throws {
            let setting = try Setting()
            let connection = try TCPConnection()
            let listener = setting.listener(connection)
            setting.greeted()
            let connector = setting.connector(connection, slot: 1)
            #expect(setting.provider.connect(connector, connection.listenerAddress) == .failed(EINPROGRESS))
            #expect(setting.offer(listener, connection, slot: 2) == .done)
            let ends = ScriptedService.Ends()
            setting.service.pair(slot: 1, generation: 1, side: 0, ends)
            setting.service.pair(slot: 2, generation: 1, side: 1, ends)
            ends.close()
            setting.delivered()
            #expect(setting.accept(listener) { _, _, _ in Int32(CF_DEFER) }.1 == EAGAIN)
            #expect(setting.provider.events(listener).lNetworkEvents == Int32(FD_ACCEPT))
            let createdBefore = UpCalls.created
            #expect(setting.accept(listener) { _, _, _ in Int32(CF_REJECT) }.1 == ECONNREFUSED)
            #expect(UpCalls.created == createdBefore)
            #expect(setting.provider.events(connector).lNetworkEvents == Int32(FD_CONNECT))
            #expect(setting.provider.receive(connector).0 == .failed(ECONNREFUSED))
            connection.close()
            setting.end()
        }

        @Test("refusals reach the connector as FD_CONNECT with an error that promises nothing about TCP, the listener as results (WSD-N3)")
        func refused() throws {
            let setting = try Setting()
            let connection = try TCPConnection()
            let listener = setting.listener(connection)
            setting.greeted()
            let connector = setting.connector(connection, slot: 1)
            for reason in [Reason.peerNotSwitched, .peerPolicy, .waitingForPeer] {
                #expect(setting.provider.connect(connector, connection.listenerAddress) == .failed(EINPROGRESS))
                #expect(setting.offer(listener, connection, slot: 2) == .done)
                setting.service.refuse(slot: 1, generation: 1, reason)
                setting.service.refuse(slot: 2, generation: 1, reason)
                setting.delivered()
                let events = setting.provider.events(connector)
                #expect(events.lNetworkEvents == Int32(FD_CONNECT))
                #expect(![0, ECONNREFUSED, ECONNRESET, EHOSTUNREACH].contains(events.iErrorCode.4))
                #expect(setting.provider.reason(connector) == reason)

                #expect(setting.provider.events(listener).lNetworkEvents == Int32(FD_ACCEPT))
                var result = SOCKSWITCH_OFFER_RESULT()
                #expect(setting.provider.ioctl(listener, Int(SIO_SOCKSWITCH_OFFER_RESULT), output: &result) == .done)
                #expect(result.Cookie == 2 | 1 << 20 && result.Reason == Int32(reason.rawValue))
                #expect(setting.provider.ioctl(listener, Int(SIO_SOCKSWITCH_OFFER_RESULT), output: &result) == .failed(EAGAIN))
                #expect(setting.provider.events(listener).lNetworkEvents == 0)
            }
            connection.close()
            setting.end()
        }

        @Test("a closed companion withdraws; a pairing that crosses it is turned down and leaks nothing")
        func withdrawn() throws {
            let setting = try Setting()
            let connection = try TCPConnection()
            let listener = setting.listener(connection)
            setting.greeted()
            let connector = setting.connector(connection, slot: 1)
            #expect(setting.provider.connect(connector, connection.listenerAddress) == .failed(EINPROGRESS))
            #expect(setting.offer(listener, connection, slot: 2) == .done)
            #expect(setting.offer(listener, connection, slot: 3) == .done)
            #expect(setting.provider.close(connector) == .done)
            let void = SOCKSWITCH_OFFER(BaseSocket: connection.acceptor, Flags: 0, Cookie: 2 | 1 << 20)
            #expect(setting.provider.ioctl(listener, Int(SIO_SOCKSWITCH_WITHDRAW_OFFER), input: void) == .done)
            #expect(setting.provider.ioctl(listener, Int(SIO_SOCKSWITCH_WITHDRAW_OFFER), input: void) == .failed(ENOENT))
            var kinds: [UInt32] = []
            while let packet = setting.service.receive() { kinds.append(packet.kind) }
            #expect(kinds == [MessageKind.listen] + [UInt32](repeating: MessageKind.announce, count: 3) + [UInt32](repeating: MessageKind.withdraw, count: 2))

            let ends = ScriptedService.Ends()
            setting.service.pair(slot: 1, generation: 1, side: 0, ends)
            setting.service.pair(slot: 3, generation: 2, side: 0, ends)  // another generation
            setting.service.pair(slot: 3, generation: 1, side: 1, ends)
            setting.delivered()
            #expect(setting.provider.events(listener).lNetworkEvents == Int32(FD_ACCEPT))
            let (accepted, _) = setting.accept(listener, nil)
            #expect(setting.provider.receive(accepted).0 == .failed(ECONNREFUSED))
            ends.close()

            // The listener goes with its offers.
            #expect(setting.offer(listener, connection, slot: 4) == .done)
            #expect(setting.provider.close(listener) == .done)
            kinds = []
            while let packet = setting.service.receive() { kinds.append(packet.kind) }
            #expect(kinds == [MessageKind.announce, MessageKind.unlisten, MessageKind.withdraw])
            connection.close()
            setting.end()
        }

        @Test("hostile packets: the connection ends, everything outstanding fails, no descriptor stays", arguments: 0..<12)
        func hostile(which: Int) throws {
            let setting = try Setting()
            let connection = try TCPConnection()
            let connector = setting.connector(connection, slot: 1)
            #expect(setting.provider.connect(connector, connection.listenerAddress) == .failed(EINPROGRESS))
            setting.greeted()
            _ = setting.service.receive()
            let ends = ScriptedService.Ends()
            let service = setting.service
            let triple = [ends.segment, ends.doorbells[0], ends.doorbells[1]]
            func fill(_ message: Message) {
                message.slot = 1
                message.generation = 1
            }
            // What the provider does with it: nothing, an end of the connection, or a failed announcement.
            var expected = Reason.serviceNotTrusted
            switch which {
            case 0: service.sendRaw([1, 2, 3])
            case 1: service.sendRaw([UInt8](repeating: 0, count: 128), triple)
            case 2: service.sendRaw([UInt8](repeating: 7, count: 4000), triple)
            case 3: service.send(MessageKind.hello, [], fill)
            case 4: service.send(77, triple, fill)
            case 5: service.send(MessageKind.paired, [], fill)
            case 6: service.send(MessageKind.paired, Array(triple.prefix(2)), fill)
            case 7: service.send(MessageKind.paired, triple + triple, fill)
            case 8: service.send(MessageKind.refused, triple, fill)
            case 9:
                service.send(MessageKind.paired, triple) {
                    fill($0)
                    $0.role = 2
                }
            case 10:
                // More descriptors than there is room for: as when the process's table is full.
                service.send(MessageKind.paired, [Int32](repeating: ends.segment, count: 40), fill)
                expected = .descriptorLimit
            default:
                service.send(MessageKind.paired, [ends.doorbells[0], ends.doorbells[0], ends.doorbells[1]], fill)
                expected = .memoryLimit
            }
            setting.delivered()
            let events = setting.provider.events(connector)
            #expect(events.lNetworkEvents == Int32(FD_CONNECT) && events.iErrorCode.4 != 0)
            #expect(setting.provider.reason(connector) == expected)
            #expect(service.isConnectionOpen == (expected != .serviceNotTrusted))
            ends.close()
            connection.close()
            setting.end()
        }

        @Test("segments that could shrink or have another size are refused", arguments: [0, Segment.bytes - 1, Segment.bytes + 4096, -1])
        func badSegment(bytes: Int) throws {
            let setting = try Setting()
            let connection = try TCPConnection()
            let connector = setting.connector(connection, slot: 1)
            #expect(setting.provider.connect(connector, connection.listenerAddress) == .failed(EINPROGRESS))
            setting.greeted()
            let ends = ScriptedService.Ends()
            let segment = Int32(ss_sys_memfd_create("bad", ss_mfd_cloexec | ss_mfd_allow_sealing))
            #expect(ss_sys_ftruncate(segment, Int64(bytes < 0 ? Segment.bytes : bytes)) == 0)
            if bytes >= 0 { #expect(ss_sys_fcntl(segment, ss_f_add_seals, Int(ss_seal_fixed_size)) == 0) }
            setting.service.send(MessageKind.paired, [segment] + ends.doorbells) {
                $0.slot = 1
                $0.generation = 1
            }
            setting.delivered()
            #expect(setting.provider.events(connector).iErrorCode.4 != 0)
            #expect(setting.provider.reason(connector) == .memoryLimit)
            _ = ss_sys_close(segment)
            ends.close()
            connection.close()
            setting.end()
        }

        @Test("messages for what was never announced are ignored")
        func unknownSlots() throws {
            let setting = try Setting()
            let connection = try TCPConnection()
            let connector = setting.connector(connection, slot: 1)
            #expect(setting.provider.connect(connector, connection.listenerAddress) == .failed(EINPROGRESS))
            setting.greeted()
            let ends = ScriptedService.Ends()
            for slot in [UInt64(0), 2, 32767, 32768, .max, 1 << 33] {
                setting.service.refuse(slot: slot, generation: 1, .policy)
                setting.service.pair(slot: slot, generation: 1, side: 1, ends)
            }
            setting.service.refuse(slot: 1, generation: 2, .policy)
            setting.delivered()
            #expect(setting.provider.events(connector).lNetworkEvents == 0)
            setting.service.refuse(slot: 1, generation: 1, .policy)
            setting.delivered()
            #expect(setting.provider.events(connector).lNetworkEvents == Int32(FD_CONNECT))
            ends.close()
            connection.close()
            setting.end()
        }

        @Test("the service dies: outstanding announcements fail, live companions go on, a new service learns of the listeners")
        func serviceDies() throws {
            let setting = try Setting()
            let provider = setting.provider
            let connection = try TCPConnection()
            let listener = setting.listener(connection)
            setting.greeted()
            let (a, b) = provider.pair()
            let connector = setting.connector(connection, slot: 1)
            #expect(provider.connect(connector, connection.listenerAddress) == .failed(EINPROGRESS))
            setting.service.die()
            let mailboxBefore = setting.arena.mailbox.load()
            // The next announcement notices; with nobody there it fails, and so does what was outstanding.
            #expect(setting.offer(listener, connection, slot: 2) == .failed(ENETDOWN))
            #expect(provider.reason(listener) == .noService)
            #expect(setting.arena.mailbox.load() != mailboxBefore)
            let events = provider.events(connector)
            #expect(events.lNetworkEvents == Int32(FD_CONNECT) && events.iErrorCode.4 == ENETDOWN)
            #expect(provider.reason(connector) == .noService)
            #expect(provider.send(a, [[1]]) == .done)
            #expect(provider.receive(b) == (.done, [1]))
            #expect(provider.ring(a) == .done)

            // Not tried again at once, even though there is a service now.
            try setting.service.restart()
            #expect(setting.offer(listener, connection, slot: 2) == .failed(ENETDOWN))
            #expect(!setting.service.accept())
            var waited = 0
            while setting.offer(listener, connection, slot: 2) != .done, waited < 1000 {
                usleep(10_000)
                waited += 1
            }
            setting.greeted()
            #expect(setting.service.receive()?.kind == MessageKind.listen)
            #expect(setting.service.receive()?.kind == MessageKind.announce)
            connection.close()
            setting.end()
        }

        @Test("a service that was restarted in the meantime is found in the same call")
        func serviceRestarts() throws {
            let setting = try Setting()
            let connection = try TCPConnection()
            let listener = setting.listener(connection)
            setting.greeted()
            usleep(1_010_000)  // a connection that ended within a second counts as a failed one
            setting.service.die()
            try setting.service.restart()
            #expect(setting.offer(listener, connection, slot: 2) == .done)
            setting.greeted()
            #expect(setting.service.receive()?.kind == MessageKind.listen)
            #expect(setting.service.receive()?.kind == MessageKind.announce)
            connection.close()
            setting.end()
        }

        @Test("without a service, listening succeeds and connecting says why it does not")
        func noService() throws {
            let setting = try Setting()
            setting.service.die()
            let connection = try TCPConnection()
            let listener = setting.listener(connection)
            let connector = setting.connector(connection, slot: 1)
            #expect(setting.provider.connect(connector, connection.listenerAddress) == .failed(ENETDOWN))
            #expect(setting.provider.reason(connector) == .noService)
            #expect(setting.provider.events(listener).lNetworkEvents == 0)
            connection.close()
            setting.end()
        }

        @Test("a service that does not read: announcements fail with ENOBUFS, none is lost silently, nothing blocks")
        func deafService() throws {
            let setting = try Setting()
            let connection = try TCPConnection()
            var sockets: [SOCKET] = []
            var last = Outcome.failed(EINPROGRESS)
            for slot in 1..<1000 where last == .failed(EINPROGRESS) {
                sockets.append(setting.connector(connection, slot: UInt64(slot)))
                last = setting.provider.connect(sockets.last!, connection.listenerAddress)
            }
            #expect(last == .failed(ENOBUFS))
            #expect(setting.provider.reason(sockets.last!) == .waitingForPeer)
            setting.greeted()
            var announced = 0
            while let packet = setting.service.receive() { announced += packet.kind == MessageKind.announce ? 1 : 0 }
            #expect(announced == sockets.count - 1)
            #expect(setting.provider.connect(sockets.last!, connection.listenerAddress) == (announced < 256 ? .failed(EINPROGRESS) : .failed(ENOBUFS)))
            connection.close()
            setting.end()
        }

        @Test("a closed TCP descriptor cannot be announced, and that ends nothing")
        func badDescriptor() throws {
            let setting = try Setting()
            let connection = try TCPConnection()
            let connector = setting.connector(connection, slot: 1)
            let listener = setting.listener(connection)
            connection.close()
            #expect(setting.provider.connect(connector, connection.listenerAddress) == .failed(ENETUNREACH))
            #expect(setting.provider.reason(connector) == .companionFailed)
            #expect(setting.offer(listener, connection, slot: 2) == .failed(EBADF))
            setting.greeted()
            #expect(setting.service.isConnectionOpen)
            setting.end()
        }

        @Test("fork: the child forgets its parent's announcements, keeps connected companions, and registers by itself (WSD-D1)")
        func forked() throws {
            let setting = try Setting()
            let provider = setting.provider
            let connection = try TCPConnection()
            let listener = setting.listener(connection)
            setting.greeted()
            let (a, b) = provider.pair()
            let connector = setting.connector(connection, slot: 1)
            #expect(provider.connect(connector, connection.listenerAddress) == .failed(EINPROGRESS))
            #expect(setting.offer(listener, connection, slot: 2) == .done)
            #expect(setting.arena.arena.addProcess(pid: 0) == 1)
            while setting.service.receive() != nil {}

            let calls = provider.calls
            let mask = sharedMemoryProviderBeforeFork()
            let child = ss_syscall6(Int(SYS_clone), Int(SIGCHLD), 0, 0, 0, 0, 0)
            if child == 0 {
                // No allocation here: other threads' locks are gone with the threads.
                ss_thread_id_reset()
                sharedMemoryProviderAfterForkInChild(process: 1, mask: mask)
                var wrong = 0
                var error: Int32 = 0
                var events = WSANETWORKEVENTS()
                var sent = 0
                // Registers anew.
                if calls.lpWSPEnumNetworkEvents(listener, -1, &events, &error) != 0 || events.lNetworkEvents != 0 { wrong |= 1 }
                if calls.lpWSPEnumNetworkEvents(connector, -1, &events, &error) != 0 || events.iErrorCode.4 == 0 { wrong |= 2 }
                if calls.lpWSPSend(a, nil, 0, &sent, 0, nil, &error) != 0 { wrong |= 4 }
                // Closing the copies speaks to nobody.
                for socket in 0..<3 where calls.lpWSPCloseSocket(socket == 0 ? a : socket == 1 ? b : connector, &error) != 0 { wrong |= 8 }
                if ownDescriptorCount != 1 { wrong |= 16 }  // the connection to the service
                if calls.lpWSPCloseSocket(listener, &error) != 0 { wrong |= 32 }
                _ = ss_syscall6(Int(SYS_exit_group), wrong, 0, 0, 0, 0, 0)
            }
            sharedMemoryProviderAfterForkInParent(mask)
            try #require(child > 0)
            var status: Int32 = -1
            #expect(waitpid(pid_t(child), &status, 0) == pid_t(child))
            #expect(status == 0, "wrong bits \(status >> 8)")
            #expect(setting.service.receive() == nil)  // nothing over the parent's connection
            let parentsConnection = setting.service.connection
            #expect(setting.service.accept())
            let hello = setting.service.receive()
            #expect(hello?.kind == MessageKind.hello && hello?.process == 1)
            #expect(setting.service.receive()?.kind == MessageKind.listen)
            #expect(setting.service.receive()?.kind == MessageKind.unlisten)
            #expect(setting.service.receive() == nil)

            #expect(provider.silence(b) == .done)  // the child's ring
            #expect(provider.send(a, [[1]]) == .done)
            #expect(provider.receive(b) == (.done, [1]))
            #expect(provider.events(connector).lNetworkEvents == 0)
            _ = ss_sys_close(setting.service.connection)
            setting.service.adopt(parentsConnection)
            setting.service.refuse(slot: 1, generation: 1, .policy)
            setting.delivered()
            #expect(provider.events(connector).lNetworkEvents == Int32(FD_CONNECT))
            connection.close()
            setting.end()
        }
    }
}
