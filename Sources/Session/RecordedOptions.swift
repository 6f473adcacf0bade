import CSocketSwitch

/// The socket options that a program set, in the order in which it set them first (WSD-C9). The switch replays them on
/// the companion right after its bind.
package struct RecordedOptions {
    package struct Option {
        package var level: Int32 = 0
        package var name: Int32 = 0
        package var length: UInt32 = 0
        package var value = InlineArray<16, UInt8>(repeating: 0)
    }

    package private(set) var count = 0
    package var options = InlineArray<16, Option>(repeating: Option())

    package init() {}

    package mutating func clear() { count = 0 }

    /// Records one; a later value of the same option replaces the earlier. Values of more than 16 bytes (none that a
    /// companion could use) and more than 16 different options are not kept.
    package mutating func record(_ level: Int32, _ name: Int32, _ value: UnsafeRawPointer, _ length: UInt32) {
        guard length > 0, length <= 16 else { return }
        var index = 0
        while index < count, options[index].level != level || options[index].name != name { index &+= 1 }
        guard index < 16 else { return }
        if index == count { count &+= 1 }
        options[index].level = level
        options[index].name = name
        options[index].length = length
        var byte = 0
        while byte < Int(length) {
            options[index].value[byte] = value.load(fromByteOffset: byte, as: UInt8.self)
            byte &+= 1
        }
    }
}
