#if !hasFeature(Embedded)
import SocketTable
#endif
func policyAllows(_ address: CompactAddress) -> Bool { true }
func startPolicy(programName: UnsafeMutableRawPointer) {}
