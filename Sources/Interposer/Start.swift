import CInterposer
import CSocketSwitch

/// The library's constructor: finds the real functions, copies the environment (programs overwrite it: redis does, for
/// its process title) and starts the switch. Entry points called earlier work as plain system calls.
@section(".init_array") @used
let start: @convention(c) () -> Void = {
    ss_find_real_functions()
    ss_process_hooks.before_exec = { text, capacity, exec in
        switchBeforeExec(text, Int(capacity)) { ss_find_next_image(exec, &$0.device, &$0.inode) != 0 } ? 1 : 0
    }
    ss_process_hooks.exec_failed = { switchExecFailed() }
    ss_process_hooks.before_spawn = { switchBeforeSpawn() }
    ss_process_hooks.passes_to_child = { switchPassesToChild($0) }
    ss_process_hooks.before_fork = { switchBeforeFork() }
    ss_process_hooks.after_fork_in_parent = { switchAfterForkInParent() }
    ss_process_hooks.after_fork_in_child = { switchAfterForkInChild() }
    ss_register_fork_hooks()
    ss_register_quick_exit_hook { switchBeforeExit(closes: true) }
    switchStart(
        service: copyOfEnvironment(Environment.service, 0), policy: copyOfEnvironment(Environment.policy, 1),
        wait: copyOfEnvironment(Environment.wait, 2), upgrade: copyOfEnvironment(Environment.upgrade, 3),
        seccomp: copyOfEnvironment(Environment.seccomp, 4))
    ss_find_own_name()
    if let inherited = ss_take_inheritance() { switchAdopt(inherited) { ss_is_this_image($0.device, $0.inode) != 0 } }
}

private func copyOfEnvironment(_ name: StaticString, _ which: Int32) -> UnsafePointer<CChar>? {
    ss_copy_environment(UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self), which)
}
