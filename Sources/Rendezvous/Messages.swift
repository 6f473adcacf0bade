import CSocketSwitch

/// The messages between a switched process and the service (and between the command-line tool and the service).
///
/// Transport: one Unix `SOCK_SEQPACKET` connection a process; every message is one packet of fixed size, native byte
/// order, with descriptors in SCM_RIGHTS where the table says so. Neither side trusts the other: a packet of another
/// size, kind or version, or with the wrong number of descriptors, ends the connection.
///
///     process → service   hello      fd: the arena's memfd            once, first
///                         listen                                      a listening companion exists at `local`
///                         unlisten                                    … no longer
///                         announce   fd: the connected TCP socket     "pair me": slot, generation, role
///                         withdraw                                    the announcement of slot/generation is void
///     service → process   paired     fds: segment, my doorbell, peer's doorbell; side, kind of the doorbells
///                         refused    reason
///     tool → service      tool       a command in `text`: ping, status, ps, off, on, hold or stay
///     service → tool      (packets of at most `toolChunkBytes` of UTF-8 text, never beginning with a byte below 9)
///                         toolEnd    reason: `ToolStatus`; the answer is complete
///
/// A tool need not say hello. All commands but ping are for root and for the service's own user. (The end is a message of its
/// own because an empty packet reads like the end of the connection.)
///
/// Every announcement is answered exactly once, by `paired` or `refused` with its slot and generation, unless it was
/// withdrawn; an answer that crossed the `withdraw` on its way is void, and its descriptors are to be closed. A second
/// announcement of one connection by the same end takes the first one's place; the first is refused if it came from
/// another slot. When the `withdraw`, or the end of the client, crosses a `paired`, the service rejects the segment in
/// that side's name, so that the other end does not wait for it.
///
/// After `paired` or `refused` was sent the service raises the mailbox word of the process's entry in its arena.
package enum MessageKind {
    package static var hello: UInt32 { 1 }
    package static var listen: UInt32 { 2 }
    package static var unlisten: UInt32 { 3 }
    package static var announce: UInt32 { 4 }
    package static var withdraw: UInt32 { 5 }
    package static var paired: UInt32 { 6 }
    package static var refused: UInt32 { 7 }
    package static var tool: UInt32 { 8 }
    package static var toolEnd: UInt32 { 9 }
}

/// How a tool command ended.
package enum ToolStatus {
    package static var done: UInt32 { 0 }
    package static var unknownCommand: UInt32 { 1 }
    package static var notPermitted: UInt32 { 2 }
}

package enum Role {
    package static var connector: UInt32 { 0 }
    package static var acceptor: UInt32 { 1 }
    /// Either end of a connection whose session is begun anew after an exec: it waits for its peer whether anybody listens or not.
    package static var rejoiner: UInt32 { 2 }
}

/// One message: 128 bytes.
///
///     0 u32 magic   4 u32 kind   8 u64 slot   16 u64 generation   24 u32 role or side   28 u32 reason
///     32 u32 process index or kind of doorbells   36 u32 pid   40 32 B address (`CompactAddress`)   72 56 B text (tool), else zero
package struct Message {
    package let base: UnsafeMutableRawPointer
    @inline(__always) package init(_ base: UnsafeMutableRawPointer) { self.base = base }

    package static var bytes: Int { 128 }
    /// "SSW" and the protocol's version.
    package static var magic: UInt32 { 0x5353_5703 }

    package var magic: UInt32 { get { u32(0) } nonmutating set { set(0, newValue) } }
    package var kind: UInt32 { get { u32(4) } nonmutating set { set(4, newValue) } }
    package var slot: UInt64 { get { u64(8) } nonmutating set { set(8, newValue) } }
    package var generation: UInt64 { get { u64(16) } nonmutating set { set(16, newValue) } }
    /// announce: `Role`; paired: side 0 or 1 of the segment.
    package var role: UInt32 { get { u32(24) } nonmutating set { set(24, newValue) } }
    /// refused: a `Reason`.
    package var reason: UInt32 { get { u32(28) } nonmutating set { set(28, newValue) } }
    /// hello: index of the process's entry in its arena.
    package var process: UInt32 { get { u32(32) } nonmutating set { set(32, newValue) } }
    /// paired: `DoorbellKind`.
    package var doorbellKind: UInt32 { get { u32(32) } nonmutating set { set(32, newValue) } }
    package var pid: UInt32 { get { u32(36) } nonmutating set { set(36, newValue) } }
    /// listen, unlisten: a `CompactAddress`.
    package var address: UnsafeMutableRawPointer { base + 40 }
    /// tool: the command, zero-terminated.
    package var text: UnsafeMutableRawPointer { base + 72 }
    package static var textBytes: Int { 56 }
    package static var toolChunkBytes: Int { 60 << 10 }

    package func clear(kind: UInt32) {
        memset(base, 0, Message.bytes)
        self.magic = Message.magic
        self.kind = kind
    }

    private func u32(_ offset: Int) -> UInt32 { base.load(fromByteOffset: offset, as: UInt32.self) }
    private func u64(_ offset: Int) -> UInt64 { base.load(fromByteOffset: offset, as: UInt64.self) }
    private func set(_ offset: Int, _ value: UInt32) { base.storeBytes(of: value, toByteOffset: offset, as: UInt32.self) }
    private func set(_ offset: Int, _ value: UInt64) { base.storeBytes(of: value, toByteOffset: offset, as: UInt64.self) }
}

/// The shared-memory segment of one connection, made and sealed by the service (WSD-M2, WSD-N4).
///
///     page 0       the mailboxes of the two sides: side k, and only it, writes at 2048·k: u64 messages written so far,
///                  u64 length of the last one (all ones: the side has rejected or given up the connection), the
///                  message (256 B), u64 messages of the other side read so far
///     page 1 …     window of side 0 (written by side 1)
///     …            window of side 1
package enum Segment {
    package static var mailboxBytes: Int { 2048 }
    package static var maximumMessageBytes: Int { 256 }
    package static var windowBytes: Int { 4096 + (1 << 20) }
    package static var mailboxLengthOffset: Int { 8 }
    /// The length that says that the side has rejected or given up the connection.
    package static var rejectedLength: UInt64 { UInt64.max }
    package static var mailboxMessageOffset: Int { 16 }
    package static var mailboxReadOffset: Int { 16 + 256 }
    package static func mailboxOffset(side: Int) -> Int { side * mailboxBytes }
    package static func windowOffset(side: Int) -> Int { 4096 + side * windowBytes }
    package static var bytes: Int { 4096 + 2 * windowBytes }
}

/// The environment through which `sockswitch run` configures the library. Values are read once, in the constructor.
///
///     SOCKSWITCH_SERVICE   path of the service's socket
///     SOCKSWITCH_POLICY    compiled policy, see below
///     SOCKSWITCH_WAIT      `adaptive` (default) or `never` (never spin)
///     SOCKSWITCH_UPGRADE   `default` or `eager` (announce at once)
///     SOCKSWITCH_SECCOMP   `respect` (default: nothing is set up under a filter of system calls) or `ignore`
///
/// Another one, SOCKSWITCH_INHERITED, is what one image of a process leaves to the next (Switch/Inheritance.swift).
///
/// A compiled policy is at most 64 rules joined by ';'. Before them there may be `w,i`: a listener on the wildcard gets a
/// companion for each address. A rule is exactly four fields joined by ',':
///
///     ACTION,PROGRAM,ADDRESS,PORTS        for example  t,redis*,4:7f000000/8,6379-6380;a,*,*,*
///
///     ACTION    `a` allow a companion, `t` keep on TCP
///     PROGRAM   a glob whose only wildcard is `*`, matched against the program's name (`comm`, at most 15 bytes)
///     ADDRESS   `*`, or `4:` and 8 or `6:` and 32 lower-case hex digits of the network in network order, `/`, prefix length
///     PORTS     `*`, or LOW-HIGH in decimal
///
/// The first rule that matches decides; no match allows. A v4-mapped IPv6 address is matched as IPv4.
package enum Environment {
    package static var service: StaticString { "SOCKSWITCH_SERVICE" }
    package static var policy: StaticString { "SOCKSWITCH_POLICY" }
    package static var wait: StaticString { "SOCKSWITCH_WAIT" }
    package static var upgrade: StaticString { "SOCKSWITCH_UPGRADE" }
    package static var seccomp: StaticString { "SOCKSWITCH_SECCOMP" }
}
