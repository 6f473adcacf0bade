import CInterposer
import CSocketSwitch

/// The library's constructor: finds the real functions, copies the environment (programs overwrite it: redis does, for
/// its process title) and starts the switch. Entry points called earlier work as plain system calls.
@section(".init_array") @used
let start: @convention(c) () -> Void = {
    ss_find_real_functions()
    ss_register_fork_hooks({ switchBeforeFork() }, { switchAfterForkInParent() }, { switchAfterForkInChild() })
    switchStart(
        service: copyOfEnvironment(Environment.service, 0), policy: copyOfEnvironment(Environment.policy, 1),
        wait: copyOfEnvironment(Environment.wait, 2), upgrade: copyOfEnvironment(Environment.upgrade, 3))
}

private func copyOfEnvironment(_ name: StaticString, _ which: Int32) -> UnsafePointer<CChar>? {
    ss_copy_environment(UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self), which)
}
