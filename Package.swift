// swift-tools-version: 6.2
import PackageDescription

// The data-plane core (StreamRing … Switch) is compiled twice: as the normal modules below, which the daemon, the
// tests and the sanitizers use, and once more, through the symbolic links in Sources/Interposer/Core, into the one
// Embedded module that becomes libsockswitch.so. A normal module cannot import an Embedded one.
// The C shim needs _GNU_SOURCE, and so must every C module that it meets (the Glibc overlay), or their types differ.
let gnuSource: [String] = ["-Xcc", "-D_GNU_SOURCE"]
let swift6: [SwiftSetting] = [.swiftLanguageMode(.v6), .unsafeFlags(gnuSource)]

let package = Package(
    name: "SocketSwitch",
    products: [
        .library(name: "sockswitch", type: .dynamic, targets: ["Interposer"]),
        .executable(name: "sockswitch-tool", targets: ["sockswitch-tool"]),
        .executable(name: "sockswitchd", targets: ["sockswitchd"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    ],
    targets: [
        .target(name: "CSocketSwitch"),
        .target(name: "StreamRing", dependencies: ["CSocketSwitch"], swiftSettings: swift6),
        .target(name: "SocketTable", dependencies: ["StreamRing"], swiftSettings: swift6),
        .target(name: "Rendezvous", dependencies: ["CSocketSwitch"], swiftSettings: swift6),
        .target(name: "Session", dependencies: ["SocketTable"], swiftSettings: swift6),
        .target(name: "ServiceProviders", dependencies: ["Session", "Rendezvous"], swiftSettings: swift6),
        .target(name: "Switch", dependencies: ["ServiceProviders"], swiftSettings: swift6),
        .target(name: "CInterposer", dependencies: ["CSocketSwitch"]),
        .target(
            name: "Interposer",
            dependencies: ["CSocketSwitch", "CInterposer"],
            exclude: ["exports.map", "functions.order"],
            swiftSettings: [
                .enableExperimentalFeature("Embedded"), .enableExperimentalFeature("SymbolLinkageMarkers"),
                .swiftLanguageMode(.v6), .unsafeFlags(gnuSource),
                .unsafeFlags(["-O", "-wmo", "-no-allocations", "-Xfrontend", "-disable-stack-protector"]),
                // Unreached code goes (Hasher would bring libc symbols that older systems lack); entries of equal shape
                // stay apart (merged ones cost a detour on every call).
                .unsafeFlags(["-Xfrontend", "-function-sections", "-Xllvm", "-swiftmergefunc-threshold=0"]),
                // A thread that is cancelled in a call, or an exception out of a handler, is unwound through ours: with tables.
                // (The thread sanitizer's pass cannot do with that.)
                .unsafeFlags(["-Xllvm", "-force-remove-attribute=nounwind", "-Xllvm", "-disable-nounwind-inference"], .when(configuration: .release)),
            ],
            linkerSettings: [
                .unsafeFlags([
                    "-Xlinker", "--version-script=\(Context.packageDirectory)/Sources/Interposer/exports.map",
                    "-use-ld=lld", "-Xlinker", "--as-needed", "-Xlinker", "--gc-sections", "-Xlinker", "-z", "-Xlinker", "now",
                    "-Xlinker", "--no-warn-symbol-ordering", "-Xlinker", "--symbol-ordering-file=\(Context.packageDirectory)/Sources/Interposer/functions.order",
                ])
            ]
        ),

        // The control plane: ordinary Swift.
        .target(
            name: "ControlPlane", dependencies: ["Rendezvous", "SocketTable", "CSocketSwitch"], swiftSettings: swift6),
        .target(
            name: "ServiceCore",
            dependencies: ["ControlPlane", "SocketTable", "Rendezvous", .product(name: "Logging", package: "swift-log")],
            swiftSettings: swift6),
        .executableTarget(
            name: "sockswitchd",
            dependencies: [
                "ServiceCore", .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: swift6),
        .executableTarget(
            name: "sockswitch-tool",
            dependencies: ["ControlPlane", .product(name: "ArgumentParser", package: "swift-argument-parser")],
            path: "Sources/sockswitch",
            swiftSettings: swift6),
        // Ordinary TCP programs for Tests/EndToEnd and Benchmarks: they know nothing of the switch.
        .target(name: "CProgramSupport", path: "Tests/Support/CProgramSupport"),
        .executableTarget(
            name: "StreamPair", dependencies: ["CProgramSupport"], path: "Tests/Support/StreamPair",
            swiftSettings: [.swiftLanguageMode(.v6)]),
        .executableTarget(
            name: "sockbench", dependencies: ["CProgramSupport"], path: "Benchmarks/sockbench",
            swiftSettings: [.swiftLanguageMode(.v6)]),
        // Forks with sockets of the switch: for SwitchTests.
        .executableTarget(
            name: "ForkGuest", dependencies: ["Switch", "Session", "SocketTable", "CSocketSwitch"], path: "Tests/Support/ForkGuest",
            swiftSettings: swift6),

        // A trait for suites that share the state of their process with nobody.
        .target(name: "OwnProcess", path: "Tests/Support/OwnProcess", swiftSettings: swift6),

        .testTarget(name: "ControlPlaneTests", dependencies: ["ControlPlane"], swiftSettings: swift6),
        .testTarget(name: "ServiceCoreTests", dependencies: ["OwnProcess", "ServiceCore", "ControlPlane"], swiftSettings: swift6),
        .testTarget(
            name: "ServiceProvidersTests",
            dependencies: ["OwnProcess", "ServiceProviders", "Session", "SocketTable", "Rendezvous", "StreamRing", "CSocketSwitch"],
            swiftSettings: swift6),
        .testTarget(name: "InterposerTests", swiftSettings: swift6),
        .testTarget(
            name: "SwitchTests",
            dependencies: [
                "OwnProcess", "Switch", "ServiceProviders", "Session", "SocketTable", "StreamRing", "Rendezvous", "CSocketSwitch",
            ],
            swiftSettings: swift6),
        .target(
            name: "SessionTestSupport", dependencies: ["Rendezvous", "ServiceProviders", "Session", "SocketTable", "CSocketSwitch"],
            path: "Tests/Support/SessionTestSupport", swiftSettings: swift6),
        .executableTarget(
            name: "SessionForkHelper", dependencies: ["SessionTestSupport"], path: "Tests/Support/SessionForkHelper",
            swiftSettings: swift6),
        .testTarget(
            name: "SocketTableTests", dependencies: ["OwnProcess", "SocketTable", "StreamRing", "CSocketSwitch"], swiftSettings: swift6),
        .testTarget(
            name: "SessionTests",
            dependencies: ["OwnProcess", "SessionTestSupport", "SessionForkHelper", "Session", "SocketTable", "CSocketSwitch"],
            swiftSettings: swift6),
    ]
)
