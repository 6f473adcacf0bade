import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

extension Session {
    /// In a forked child, for every record that it inherited: only the thread that forked goes on, so nobody looks at the
    /// windows or sleeps on the doorbell here, whatever the parent's threads were doing at that moment.
    package func forgetOtherThreads() {
        watchers.store(0)
        doorbellSleepers.store(0)
        sleepingCalls.store(0)
        replacer.store(0)
    }

    /// In a forked child: the session that the parent is setting up is none of ours, and what it exposed is the parent's.
    package func forgetSetup() {
        guard !isUp else { return }
        connection.pointee.isExposed = false
        abandon()
    }
}
