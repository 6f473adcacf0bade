import Testing

/// The library is a guest in every program: what it shows to the dynamic linker, and what it wants from it, is fixed.
@Suite("The shared object") struct SharedObjectTests {
    /// Names without their version.
    private func undefined() throws -> Set<String> {
        Set(try words("nm", "-D", "--undefined-only", Library.path).compactMap { $0.last?.split(separator: "@").first.map(String.init) })
    }

    /// One name more (swift_retain …) can kill the Swift program that the library is loaded into.
    @Test func exportsExactlyTheList() throws {
        // Lower-case letters are local symbols that some linkers leave in the table.
        let exported = try words("nm", "-D", "--defined-only", Library.path).filter { $0.count == 3 && $0[1] == $0[1].uppercased() }
        #expect(exported.allSatisfy { $0[1] == "T" }, "only functions are exported")
        #expect(Set(exported.map { $0[2] }) == (try Library.exportList))
        #expect(try Library.exportList.count > 50)
    }

    @Test func needsLibcOnly() throws {
        let dynamic = try words("readelf", "-d", Library.path)
        let needed = dynamic.filter { $0.contains("(NEEDED)") }.compactMap(\.last)
        #expect(needed.allSatisfy { $0 == "[libc.so.6]" || $0.hasPrefix("[ld-linux") }, "\(needed)")
        #expect(dynamic.contains { $0.contains("(FLAGS)") && $0.contains("BIND_NOW") })
        #expect(!dynamic.contains { $0.contains("(TEXTREL)") })
    }

    /// Nothing but what libc offers for such a library: no allocation, no locks of libc, and of stdio only what formats text, ends a
    /// stream, or makes one for fdopen.
    @Test func wantsOnlyWhatIsAllowed() throws {
        let allowed: Set = [
            "__chk_fail", "bcmp", "__errno_location", "__libc_single_threaded", "__register_atfork", "__sigaction", "clock_gettime", "dlsym",
            "environ", "memchr", "memcmp", "memcpy", "memmove", "memset", "pthread_setcanceltype", "pthread_testcancel",
            "sched_getcpu", "sigaddset", "sigdelset", "sigemptyset", "strlen", "strncmp", "strnlen",
            // Which file the next image of an exec is made from, and whether the environment loads this library into it.
            "dladdr", "getauxval", "getenv", "strchr", "strcspn", "strspn",
            // Streams that libc closes without a call that is seen; the end by quick_exit; a liburing that is loaded later.
            "__cxa_at_quick_exit", "dl_iterate_phdr", "dlclose", "dlopen", "fflush", "fileno",
            // dprintf, and fdopen on what the kernel's stream is not all of.
            "__vsnprintf_chk", "fopencookie", "vsnprintf",
            // How a shared object is made: weak, and absent in most programs.
            "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__cxa_finalize", "__gmon_start__", "__tls_get_addr",
        ]
        let names = try undefined()
        #expect(names.subtracting(allowed).isEmpty, "new: \(names.subtracting(allowed).sorted())")
        #expect(names.contains("dlsym"), "the list was read")
    }

    /// What the linker was told to put side by side is there, and is side by side.
    @Test func orderedFunctionsExist() throws {
        let ordered = try Library.orderedFunctions
        #expect(ordered.count > 20)
        var addresses: [String: Int] = [:]
        for line in try words("nm", Library.path) where line.count == 3 { addresses[line[2]] = Int(line[0], radix: 16) }
        #expect(ordered.filter { addresses[$0] == nil } == [])
        let found = ordered.compactMap { addresses[$0] }
        #expect(found == found.sorted())
        #expect((found.max() ?? 0) - (found.min() ?? 0) < 32768)
    }

    @Test func cannotAllocate() throws {
        let allocation: Set = [
            "malloc", "free", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign", "swift_slowAlloc", "swift_allocObject",
            "swift_retain", "swift_release",
        ]
        #expect(try undefined().isDisjoint(with: allocation))
    }

    /// A trap is a crash of somebody's program: none in the functions that every caller of libc enters, whatever it passes.
    @Test func entriesCannotTrap() throws {
        let exported = try Library.exportList
        var function = ""
        var trapping: Set<String> = []
        var seen: Set<String> = []
        for line in try words("objdump", "-d", "--no-show-raw-insn", Library.path) {
            if line.count == 2, let name = line.last, name.hasPrefix("<"), name.hasSuffix(">:") {
                function = String(name.dropFirst().dropLast(2))
                seen.insert(function)
            } else if line.contains("ud2") || line.contains("brk") {
                trapping.insert(function)
            }
        }
        let entries = trapping.intersection(exported)
        #expect(entries.isEmpty, "\(entries.sorted())")
        #expect(exported.isSubset(of: seen), "the disassembly was read")
    }
}
