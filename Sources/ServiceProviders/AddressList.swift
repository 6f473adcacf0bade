import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// Who asks for address changes: each provider is told of each change once.
enum AddressListReader { case tcpip, sharedMemory }

func fillAddressList(_ list: UnsafeMutablePointer<SOCKET_ADDRESS_LIST>) { list.pointee.iAddressCount = 0 }
func addressListChanged(for reader: AddressListReader) -> Bool { false }
func closeAddressSocket() {}
