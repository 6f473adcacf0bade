#!/usr/bin/env python3
"""Breaks the product in one place after the other and looks whether the tests notice.

    python3 Scripts/mutate.py                 every mutation (about a minute each); ends with 1 if one was not noticed
    python3 Scripts/mutate.py -k PATTERN      those whose name contains it
    python3 Scripts/mutate.py --check         nothing is built: is each still a change of the code as it is?

It works in a checkout of HEAD of its own, under .build/mutation.
"""
import argparse
import os
import signal
import subprocess
import sys
import time
import typing

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TREE = os.path.join(ROOT, ".build", "mutation")
#: A test run that takes longer hangs, which is noticed, too.
TEST_SECONDS = 240


class Mutation(typing.NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str


SWITCH, SESSION, SERVICE = "SwitchTests", "SessionTests", "ServiceCoreTests"
COMPANIONS = "Sources/Switch/Companions.swift"
PROVIDERS = "Sources/Switch/Providers.swift"
CARRIERS = "Sources/Session/Session+Carriers.swift"
SEND = "Sources/Session/Session+Send.swift"
RECEIVE = "Sources/Session/Session+Receive.swift"
WAITING = "Sources/Session/Session+Waiting.swift"
END = "Sources/Session/Session+End.swift"
HANDOVER = "Sources/Session/Session+HandOver.swift"
PAIRING = "Sources/ServiceCore/Service+Pairing.swift"

MUTATIONS = [
    # The life of a companion.
    Mutation("the companion gets another port", COMPANIONS,
             "let length = session.slot.localAddress.fill(name)",
             "session.slot.localAddress.port &+= 1; let length = session.slot.localAddress.fill(name)", SWITCH),
    Mutation("options are not replayed", COMPANIONS, "while number < connection.pointee.options.count {",
             "while number < connection.pointee.options.count, number < 0 {", SWITCH),
    Mutation("an option that the provider does not know is a failure", COMPANIONS,
             "if result == SOCKET_ERROR, error != ENOPROTOOPT {", "if result == SOCKET_ERROR {", SWITCH),
    Mutation("a failed option is none", COMPANIONS, "if result == SOCKET_ERROR, error != ENOPROTOOPT {",
             "if result == SOCKET_ERROR, error == -1 {", SWITCH),
    Mutation("a companion that failed is not closed", COMPANIONS, "    closeCompanion(index)\n    return false\n",
             "    return false\n", SWITCH),
    Mutation("a companion is closed twice", COMPANIONS, "    _ = provider.pointee.calls.lpWSPCloseSocket?(companion, &error)\n",
             "    _ = provider.pointee.calls.lpWSPCloseSocket?(companion, &error)\n    _ = provider.pointee.calls.lpWSPCloseSocket?(companion, &error)\n",
             SWITCH),
    Mutation("a provider that failed is asked again", COMPANIONS,
             "    if reason == .companionFailed { slot.flags.setBits(Slot.Flags.tcpOnly) }\n    closeCompanion", "    closeCompanion", SWITCH),
    Mutation("a failed FD_CONNECT connects", COMPANIONS, "if events.iErrorCode.4 == 0 {", "if true {", SWITCH),
    Mutation("what the provider made of an offer is not asked", COMPANIONS,
             "    var budget = 256\n    while budget > 0 {\n        budget -= 1\n        var result",
             "    var budget = 0\n    while budget > 0 {\n        budget -= 1\n        var result", SWITCH),
    Mutation("a refused peer is asked again at once", COMPANIONS,
             "            rememberRefusal(sessionOf(index).slot.peerAddress, wholeHost: false)\n", "", SWITCH),
    Mutation("the condition function takes any cookie", COMPANIONS,
             "guard cookie(index, session.slot) == value, session.connection", "guard session.connection", SWITCH),
    Mutation("a listening companion does not select FD_ACCEPT", COMPANIONS,
             "let select = calls.lpWSPEventSelect, select(connection.pointee.companion, -1, Int32(FD_ACCEPT), &error) == 0",
             "calls.lpWSPEventSelect != nil", SWITCH),
    Mutation("a retired listening companion stays", COMPANIONS,
             "if count.load() > 0, count.subtract(1) == 0, listening.descriptorCount.load() == 0 { endRetiredListener(listener) }",
             "if count.load() > 0 { _ = count.subtract(1) }", SWITCH),
    Mutation("the policy is not asked for a destination", COMPANIONS, "} else if !policyAllows(session.slot.peerAddress) {",
             "} else if false {", SWITCH),
    # Providers.
    Mutation("the first provider serves everything", PROVIDERS, "if matches(address, subnet, wholeAddress: asListener) { return entry }",
             "if count > 0 { return entry }", SWITCH),
    Mutation("the prefix is one bit short", PROVIDERS, "width : min(prefix, width)", "width : min(max(prefix - 1, 0), width)", SWITCH),
    Mutation("address changes are not followed", PROVIDERS,
             "if !changed, changes == entry.pointee.addressChanges { return }", "return", SWITCH),
    Mutation("a closed handle is still balanced", PROVIDERS, "    Word(handles, 8).subtract(1)\n", "", SWITCH),
    # Carrier changes.
    Mutation("the receiver reads past the cut on TCP", RECEIVE,
             "return receiveFromTCP(fd, message, &cursor, flags, bound: Int(clamping: left))",
             "return receiveFromTCP(fd, message, &cursor, flags, bound: Int.max)", SESSION),
    Mutation("the sender does not wait for the acknowledgement", CARRIERS,
             "guard !wantsTCP, local.acknowledged.load() == cuts, !(connection", "guard !wantsTCP, !(connection", SESSION),
    Mutation("cuts that nobody can have made are believed", CARRIERS,
             "guard made &- followed <= 2, invitation != Invitation.none else { return false }", "", SESSION),
    Mutation("the position of a cut is off by one", CARRIERS, "remote.cutOnTCP.storeRelaxed(written)",
             "remote.cutOnTCP.storeRelaxed(written &+ 1)", SESSION),
    Mutation("an invitation while a thread reads in the kernel", CARRIERS,
             "guard slot.plainReaders.isZeroSequential else { return }", "", SESSION),
    Mutation("a cut while a thread writes in the kernel", CARRIERS,
             "guard slot.plainWriters.isZeroSequential else { return }", "", SESSION),
    # The ring.
    Mutation("a full ring is overwritten", SEND, "if size &- used < UInt64(count) { return 0 }", "", SESSION),
    Mutation("nonsense credit is believed", "Sources/Session/Session+Ring.swift", "guard used <= ring.size else { return nil }\n", "", SESSION),
    Mutation("nobody is rung", "Sources/Session/Session+Doorbell.swift",
             "            ring()\n            // Afterwards", "            // Afterwards", SESSION),
    Mutation("a sleeper does not look a last time", WAITING, "if looksReadable || hasNews || isRewound {", "if hasNews {", SESSION),
    Mutation("a stalled sender stays on the ring", WAITING, "guard isLate || stalled >= patienceNanoseconds else { return false }",
             "guard now == 0 else { return false }", SESSION),
    Mutation("a ring grows without its peer", "Sources/Session/Session+Ring.swift",
             "        remote.ringChange.storeRelaxed(change.word)  // pub", "        // pub", SESSION),
    Mutation("a ring that has grown overwrites what is unread", "Sources/Session/Session+Ring.swift",
             "return isSettled(credit) ? ring.size", "return true ? ring.size", SESSION),
    Mutation("what lay before a change is read behind it", "Sources/StreamRing/RingChange.swift",
             "} else if ahead < count {", "} else if ahead < 0 {", SESSION),
    Mutation("a backlog forgets the ring before", "Sources/Session/Session+Ring.swift",
             "let isOld = position &- origin < old", "let isOld = false", SESSION),
    # Ends.
    Mutation("the FIN comes before its explanation", END,
             "            remote.endFlags.store(endFlags)\n            publish(line: 3)\n            // A peer", "            // A peer", SESSION),
    Mutation("unread bytes do not reset", END, "return unread || !isSettled\n", "return !isSettled\n", SESSION),
    Mutation("the backlog does not hold the FIN back", END, "if !isSettled { slot.flags.setBits(Slot.Flags.owesFIN) }", "", SESSION),
    Mutation("a rewind loses what lay in the ring", HANDOVER, "slot.backlogPosition.store(position)\n        slot.backlogEnd",
             "slot.backlogPosition.store(end)\n        slot.backlogEnd", SESSION),
    Mutation("a rewind to behind the credit is believed", HANDOVER, "guard position &- credit <= end &- credit else {",
             "guard position &- credit <= UInt64.max else {", SESSION),
    # The service.
    Mutation("the cookie of a waiting connection is not asked again", PAIRING, "case .gone: takeBack(candidate, .peerEnded)",
             "case .gone: return candidate", SERVICE),
    Mutation("a pair is known only after both ends are told", PAIRING,
             "        send(paired(new, made, side: 1 - side), to: second)\n    }\n", "    }\n", SERVICE),
    Mutation("who goes is not spoken for", "Sources/ServiceCore/Service.swift", "        rejectPairs(of: client)\n", "", SERVICE),
    Mutation("who has spoken is contradicted", "Sources/ServiceCore/Pair.swift", "        guard !hasSpoken(side) else { return }\n", "", SERVICE),
    Mutation("a family stays switched off", "Sources/ServiceCore/Service+Messages.swift",
             "arena.arena.switchedOff.store(isSwitchedOff ? 1 : 0)", "if isSwitchedOff { arena.arena.switchedOff.store(1) }", SERVICE),
]


def stale(tree):
    """The mutations whose place is not there, or not the only one."""
    found = []
    for mutation in MUTATIONS:
        with open(os.path.join(tree, mutation.file), encoding="utf-8") as file:
            count = file.read().count(mutation.old)
        if count != 1:
            found.append(f"{mutation.file}: {mutation.name}: found {count} times")
    return found


def run(command, seconds=None):
    """Exit status and output; None when it took longer."""
    process = subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, "it did not end"


def attempt(mutation):
    """How the mutation ended: `noticed …`, `NOT NOTICED` or `DOES NOT COMPILE`."""
    path = os.path.join(TREE, mutation.file)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text.replace(mutation.old, mutation.new))
        status, output = run(["swift", "build", "--build-tests"])
        if status != 0:
            return "DOES NOT COMPILE", output
        status, output = run(["swift", "test", "--skip-build", "--filter", mutation.tests], TEST_SECONDS)
        if status == 0:
            return "NOT NOTICED", ""
        failed = [line.split('"')[1] for line in output.splitlines() if line.startswith("✘ Test \"")]
        return f"noticed: {failed[0] if failed else 'crashed or hung'}", ""
    finally:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", metavar="PATTERN")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    found = stale(ROOT)
    for line in found:
        print(f"mutations: {line}")
    if arguments.check or found:
        print(f"mutations: {len(MUTATIONS)}, {len(found)} errors")
        return 1 if found else 0
    if not os.path.isdir(TREE):
        subprocess.run(["git", "worktree", "add", "--detach", TREE, "HEAD"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["git", "checkout", "--quiet", "--force", "--detach", subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()], cwd=TREE, check=True)
    wrong = 0
    chosen = [mutation for mutation in MUTATIONS if arguments.k in mutation.name]
    for tests in sorted({mutation.tests for mutation in chosen}):
        if run(["swift", "build", "--build-tests"])[0] != 0 or run(["swift", "test", "--skip-build", "--filter", tests], TEST_SECONDS)[0] != 0:
            sys.exit(f"{tests} fails without a mutation")
    for mutation in chosen:
        start = time.monotonic()
        verdict, output = attempt(mutation)
        if not verdict.startswith("noticed"):
            wrong += 1
        print(f"{mutation.name} … {verdict} ({time.monotonic() - start:.0f} s)\n{output[-2000:]}".rstrip(), flush=True)
    print(f"{len(chosen)} mutations, {wrong} not noticed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
