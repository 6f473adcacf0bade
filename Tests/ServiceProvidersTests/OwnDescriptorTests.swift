import CSocketSwitch
import Glibc
import ServiceProviders
import SocketTable
import Testing

extension ServiceProviders {
    @Suite struct OwnDescriptors {
        /// Runs `body` with other limits for descriptors. A hard limit, once lowered, cannot be raised again without
        /// privilege, so this happens in a forked child, which answers with the bits of what was wrong.
        private func inChild(soft: UInt, hard: UInt, _ body: () -> Int32) throws -> Int32 {
            let child = ss_syscall6(Int(SYS_clone), Int(SIGCHLD), 0, 0, 0, 0, 0)
            if child == 0 {
                ss_thread_id_reset()
                var limit = rlimit(rlim_cur: rlim_t(soft), rlim_max: rlim_t(hard))
                let wrong = ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), &limit, nil) == 0 ? body() : 64
                _ = ss_syscall6(Int(SYS_exit_group), Int(wrong), 0, 0, 0, 0, 0)
            }
            try #require(child > 0)
            var status: Int32 = -1
            #expect(waitpid(pid_t(child), &status, 0) == pid_t(child))
            return status == 0 ? 0 : (status >> 8 == 0 ? -status : status >> 8)
        }

        private static func event() -> Int32 { Int32(ss_sys_eventfd(0, Int32(EFD_CLOEXEC))) }

        private static func softLimit() -> UInt {
            var limit = rlimit()
            _ = ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), nil, &limit)
            return UInt(limit.rlim_cur)
        }

        @Test("below the hard limit: above the soft one, which is as before; numbers and EMFILE of the program stay")
        func aboveSoftLimit() throws {
            let wrong = try inChild(soft: 256, hard: 4096) {
                var wrong: Int32 = 0
                let lowest = OwnDescriptors.event()
                let moved = adoptOwn(lowest)
                if moved < 256 { wrong |= 1 }
                if OwnDescriptors.softLimit() != 256 { wrong |= 2 }
                if ss_sys_fcntl(moved, F_GETFD, 0) != Int(FD_CLOEXEC) { wrong |= 4 }
                if descriptorEntry(moved) >> 28 != DescriptorKind.own { wrong |= 8 }
                if OwnDescriptors.event() != lowest { wrong |= 16 }
                // The program's table fills up at the same number as ever.
                var last = 0
                while last >= 0 && last < 1000 { last = ss_sys_eventfd(0, 0) }
                if last != -Int(EMFILE) { wrong |= 32 }
                var one: UInt64 = 1
                if ss_sys_write(moved, &one, 8) != 8 { wrong |= 32 }
                closeOwn(moved)
                if descriptorEntry(moved) != 0 || ss_sys_fcntl(moved, F_GETFD, 0) != -Int(EBADF) { wrong |= 32 }
                return wrong
            }
            #expect(wrong == 0)
        }

        @Test("soft limit = hard limit: the top quarter, at most an eighth of the limit")
        func topQuarter() throws {
            let wrong = try inChild(soft: 1024, hard: 1024) {
                var wrong: Int32 = 0
                var count = 0
                while count < 1000 {
                    let moved = adoptOwn(OwnDescriptors.event())
                    if moved == -EMFILE { break }
                    if moved < 768 || moved >= 1024 { wrong |= 1 }
                    count += 1
                }
                if count > 128 || count < 100 { wrong |= 2 }
                let pair = adoptOwn(OwnDescriptors.event(), OwnDescriptors.event())
                if pair.0 != -EMFILE || pair.1 != -EMFILE { wrong |= 4 }
                return wrong
            }
            #expect(wrong == 0)
        }

        @Test("a program with few descriptors keeps them all")
        func fewDescriptors() throws {
            let wrong = try inChild(soft: 64, hard: 64) {
                var wrong: Int32 = 0
                let lowest = OwnDescriptors.event()
                let before = ownDescriptorCount
                if adoptOwn(lowest) != -EMFILE { wrong |= 1 }
                if ss_sys_fcntl(lowest, F_GETFD, 0) != -Int(EBADF) { wrong |= 2 }
                if ownDescriptorCount != before { wrong |= 4 }
                return wrong
            }
            #expect(wrong == 0)
        }
    }
}
