import CSocketSwitch
import Glibc
import OwnProcess
import SessionTestSupport
import SocketTable
import Testing

/// Everything here shares the process's "switched off" word and looks at global counts: one test at a time.
@Suite("Session", .serialized, .ownProcess) struct SessionTests {}

func environmentNumber(_ name: String) -> Double? { getenv(name).flatMap { Double(String(cString: $0)) } }

/// STREAM_SEED, or a new one; printed, so that a run can be repeated.
func streamSeed(_ what: String) -> UInt64 {
    let seed = environmentNumber("STREAM_SEED").map { UInt64($0) } ?? UInt64.random(in: 0..<1_000_000_000)
    print("\(what): STREAM_SEED=\(seed)")
    return seed
}

/// What each provider must serve alike.
enum ProviderUnderTest: String, CaseIterable, CustomTestStringConvertible {
    case sharedMemory, remoteWrites
    /// With the doorbells that ends of two users have.
    case sharedMemoryOfTwoUsers
    static var allCases: [ProviderUnderTest] { [.sharedMemory, .remoteWrites] }
    var mapsMemory: Bool { self != .remoteWrites }
    var loaded: LoadedProvider {
        switch self {
        case .sharedMemory: .sharedMemory
        case .remoteWrites: .remoteWrites
        case .sharedMemoryOfTwoUsers: .sharedMemoryOfTwoUsers
        }
    }
    var testDescription: String { rawValue }
}

extension SessionTests {
    /// Every byte of both directions arrives once and in order while the carriers change thousands of times.
    @Suite("Random streams", .serialized) struct StreamTests {
        private func run(_ provider: ProviderUnderTest, family: Int32, threads: Int, share: Double) throws {
            let seed = streamSeed("\(provider) \(family == AF_INET ? "IPv4" : "IPv6") \(threads) threads")
            var plan = StreamPlan(seed: seed, seconds: (environmentNumber("STREAM_SECONDS") ?? 4) * share)
            plan.threadsPerSide = threads
            plan.minimumChanges = provider.mapsMemory ? 2000 : 500
            plan.largestSendBits = 22
            TestFabric.shared.reseed(seed)
            let pair = try Pair(provider.loaded, family: family)
            let result = runStreams(pair, plan)
            pair.close()
            print("  \(result.bytes >> 20) MiB, \(result.changes) carrier changes")
            #expect(result.failures == 0)
            #expect(result.changes >= plan.minimumChanges)
        }

        @Test(arguments: ProviderUnderTest.allCases) func oneThread(_ provider: ProviderUnderTest) throws {
            try run(provider, family: AF_INET, threads: 1, share: 0.4)
        }

        @Test(arguments: ProviderUnderTest.allCases + [.sharedMemoryOfTwoUsers]) func threeThreads(_ provider: ProviderUnderTest) throws {
            try run(provider, family: AF_INET6, threads: 3, share: 0.6)
        }
    }
}
