import CSocketSwitch
import ControlPlane
import Rendezvous

/// One connection to the service.
final class Client {
    /// A message on its way to a client that does not read as fast as we write.
    struct Outgoing {
        var bytes: [UInt8]
        var descriptors: [Descriptor] = []
        /// Raise the process's mailbox word once it is sent.
        var isForMailbox = false
    }

    /// The slot of an announcement, as the client names it.
    struct SlotName: Hashable {
        var slot: UInt64
        var generation: UInt64
    }

    let id: UInt64
    let socket: Descriptor
    let credentials: PeerCredentials
    /// Cookie of the process's network namespace.
    let namespace: UInt64

    /// Not nil once it has said hello.
    var arena: SharedArena?
    /// Its entry in the arena.
    var process = 0
    var listeners: [Endpoint: Int] = [:]
    var listenerCount = 0
    /// Its announcements that wait.
    var announcements: [SlotName: UInt64] = [:]

    var queue: [Outgoing] = []
    var queueHead = 0
    var queuedDescriptors = 0
    /// When the head of the queue was first refused by the kernel, milliseconds.
    var blockedSince: UInt64 = 0
    /// What epoll watches.
    var interest: UInt32 = 0

    init(id: UInt64, socket: Descriptor, credentials: PeerCredentials, namespace: UInt64) {
        self.id = id
        self.socket = socket
        self.credentials = credentials
        self.namespace = namespace
    }

    var queuedCount: Int { queue.count - queueHead }

    func enqueue(_ outgoing: Outgoing) {
        queue.append(outgoing)
        queuedDescriptors += outgoing.descriptors.count
    }

    func dequeue() {
        queuedDescriptors -= queue[queueHead].descriptors.count
        queue[queueHead] = Outgoing(bytes: [])
        queueHead += 1
        if queueHead == queue.count || queueHead > 1024 {
            queue.removeFirst(queueHead)
            queueHead = 0
        }
    }
}

/// Makes one message of the protocol.
func makeMessage(kind: UInt32, _ fill: (Message) -> Void = { _ in }) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Message.bytes)
    bytes.withUnsafeMutableBytes {
        let message = Message($0.baseAddress!)
        message.clear(kind: kind)
        fill(message)
    }
    return bytes
}
