import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
#endif

/// Whether the operator's policy lets a connection to (or a listener at) this address have a companion.
func policyAllows(_ address: CompactAddress) -> Bool { Policy.ofProcess.allows(address: address) }

/// Reads the rules that concern this program, once, when the switch starts.
func startPolicy(programName: UnsafeMutableRawPointer) {
    guard let text = privateState.pointee.policyText else { return }
    _ = Policy.ofProcess.parse(text: text, program: UnsafePointer(programName.assumingMemoryBound(to: CChar.self)))
}
