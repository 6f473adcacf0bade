/// One end of a connection that asks to be paired.
struct Announcement {
    /// Never reused.
    var serial: UInt64 = 0
    var client: UInt64
    var name: Client.SlotName
    /// `Role`.
    var role: UInt32
    var identity: SocketIdentity
    /// When it is refused if nobody came, milliseconds of the service's clock.
    var deadline: UInt64
}

/// The announcements that wait for their other end: at most one a connection, end and network namespace.
///
/// Every announcement waits equally long, so they time out in the order in which they came.
struct AnnouncementTable {
    private var waiting: [ConnectionKey: [Announcement]] = [:]
    private var keys: [UInt64: ConnectionKey] = [:]
    private var order: [(serial: UInt64, deadline: UInt64)] = []
    private var orderHead = 0
    private var lastSerial: UInt64 = 0

    var count: Int { keys.count }

    /// Lets an announcement wait; returns its serial number.
    mutating func add(_ announcement: Announcement) -> UInt64 {
        lastSerial += 1
        var announcement = announcement
        announcement.serial = lastSerial
        waiting[announcement.identity.connection, default: []].append(announcement)
        keys[lastSerial] = announcement.identity.connection
        order.append((lastSerial, announcement.deadline))
        return lastSerial
    }

    mutating func remove(serial: UInt64) -> Announcement? {
        guard let key = keys.removeValue(forKey: serial), var list = waiting[key],
            let index = list.firstIndex(where: { $0.serial == serial })
        else { return nil }
        let found = list.remove(at: index)
        waiting[key] = list.isEmpty ? nil : list
        return found
    }

    /// Those of one connection and end; more than one only when namespaces differ.
    func candidates(_ key: ConnectionKey) -> [Announcement] { waiting[key] ?? [] }

    /// Takes away the announcements whose time is over.
    mutating func takeExpired(now: UInt64) -> [Announcement] {
        var expired: [Announcement] = []
        while orderHead < order.count {
            let first = order[orderHead]
            guard first.deadline <= now || keys[first.serial] == nil else { break }
            orderHead += 1
            if let found = remove(serial: first.serial) { expired.append(found) }
        }
        if orderHead == order.count || orderHead > 4096 {
            order.removeFirst(orderHead)
            orderHead = 0
        }
        return expired
    }

    /// When the next one's time may be over.
    var nextDeadline: UInt64? { orderHead < order.count ? order[orderHead].deadline : nil }
}
