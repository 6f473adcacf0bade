"""What the program matrix adds to the end-to-end harness: rows, and an observer of the carriers while programs run.

A test of the matrix is a workload: it starts a server and clients, and returns what they answered. It runs on plain TCP and
once more under the switch; the answers must be the same, and `sockswitch ps` must have shown the carrier that its row says.
"""
import collections
import functools
import itertools
import os
import random
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "EndToEnd"))
import harness  # noqa: E402
from harness import Case, ServiceConnection, free_port, note, settings  # noqa: E402

COMPANION = "on the companion"
MOVED_BACK = "moved back to TCP"
STAYS = "stays on TCP"

#: Who runs under the switch.
Ends = collections.namedtuple("Ends", "server client")
NONE, BOTH, SERVER_ONLY, CLIENT_ONLY = Ends(False, False), Ends(True, True), Ends(True, False), Ends(False, True)

#: What `ps` says of an end whose peer never announces itself: the second once the service has lost its patience.
PEER_NOT_SWITCHED = ("waitingForPeer", "peerNotSwitched")

Row = collections.namedtuple("Row", "program what carrier reason ends test")

#: What was seen, by the name of the row's test.
observations = {}


def row(what, carrier, reason=None, ends=BOTH, share=0.25):
    """Makes a workload a test and a row of the document.

    `reason` is the one (or one of those) that `ps` gives for a socket on TCP. `share` is the part of the bytes of all connections, from the first
    byte on, that a companion must have carried."""
    def decorate(workload):
        @functools.wraps(workload)
        def test(self):
            self.compare(workload, ends, carrier, reason, share)
        test.row = (what, carrier, reason, ends)
        return test
    return decorate


def only_server_switched(what):
    return row(f"{what}; only the server switched", STAYS, PEER_NOT_SWITCHED, ends=SERVER_ONLY)


def rows_of(case_class):
    """The rows of one program, in the order in which they are written."""
    found = []
    for name, member in vars(case_class).items():
        if hasattr(member, "row"):
            what, carrier, reason, ends = member.row
            found.append(Row(case_class.program, what, carrier, reason, ends, f"{case_class.__name__}.{name}"))
    return found


class Watch(threading.Thread):
    """Asks the service for all sockets every few milliseconds and keeps what it says of the connections of some ports."""

    PAUSE_SECONDS = 0.01

    def __init__(self, service):
        super().__init__(daemon=True)
        self.service = service
        self.ports = set()
        self.forget()
        self.ended = threading.Event()

    def forget(self):
        self.seen = {}
        self.moved_back = {}
        self.reasons = set()
        self.leaks = []
        #: Bytes over the companion when more came over TCP.
        self.suspects = {}
        #: What each connection went through, as far as it was seen.
        self.history = collections.defaultdict(list)

    def run(self):
        connection = None
        while not self.ended.is_set():
            try:
                connection = connection or ServiceConnection(self.service)
                self.look(connection.sockets())
            except (OSError, AssertionError, ValueError):
                # Not started yet, or about to end: the next round will tell.
                if connection:
                    connection.close()
                connection = None
            time.sleep(self.PAUSE_SECONDS)
        if connection:
            connection.close()

    def stop(self):
        self.ended.set()
        self.join(30)

    @staticmethod
    def on_companion(entry):
        return "companion" in (entry["sendCarrier"], entry["receiveCarrier"])

    def look(self, entries):
        for entry in entries:
            if entry["kind"] not in ("connected", "accepted"):
                continue
            ports = {int(name.rpartition(":")[2] or 0) for name in (entry["local"], entry["peer"])}
            if not ports & self.ports:
                continue
            key = (entry["kind"], entry["local"], entry["peer"], entry["program"])
            before = self.seen.get(key)
            if before and self.on_companion(before) and not self.on_companion(entry):
                self.moved_back[key] = entry["reason"]
            if before:
                self.look_for_leaks(key, before, entry)
            self.seen[key] = entry
            history = self.history[key]
            state = f"{entry['sendCarrier']}/{entry['receiveCarrier']} {entry['reason']}"
            if not history or history[-1] != state:
                history.append(state)
            if not self.on_companion(entry):
                self.reasons.add(entry["reason"])

    def look_for_leaks(self, key, before, entry):
        """While a direction is on the companion nothing of it goes over TCP. What is said when the peer has ended is the
        kernel's, and nothing follows it: so a leak is what is followed by bytes on the companion."""
        for carrier, direction in (("sendCarrier", "Sent"), ("receiveCarrier", "Received")):
            tcp, companion = entry["bytes"]["tcp" + direction], entry["bytes"]["companion" + direction]
            suspect = self.suspects.get((key, direction))
            if before["carrierChanges"] != entry["carrierChanges"]:
                self.suspects.pop((key, direction), None)
            elif suspect is not None and companion > suspect:
                self.leaks.append(f"{key} {direction}: {before} {entry}")
            elif before[carrier] == entry[carrier] == "companion" and tcp != before["bytes"]["tcp" + direction]:
                self.suspects[key, direction] = companion

    def bytes(self):
        """(over companions, over TCP) of all connections, as of the last time that each was seen."""
        counts = [entry["bytes"] for entry in self.seen.values()]
        return tuple(sum(count[f"{carrier}Sent"] + count[f"{carrier}Received"] for count in counts)
                     for carrier in ("companion", "tcp"))

    def describe(self):
        lines = [f"{len(self.seen)} ends; reasons of those on TCP: {sorted(self.reasons)}; moved back: {self.moved_back}"]
        for key, entry in sorted(self.seen.items(), key=lambda item: -item[1]["bytes"]["tcpSent"] - item[1]["bytes"]["tcpReceived"]):
            lines.append(f"{entry['program']} {entry['pids']} {entry['kind']} {entry['local']} {entry['peer']} {entry['bytes']} "
                         f"{'; '.join(self.history[key])}")
        return "\n".join(lines[:30])


class Toggle(threading.Thread):
    """Switches everything off and on again, in pauses that differ, until it is stopped; ends with on."""

    def __init__(self, service, seed):
        super().__init__(daemon=True)
        self.service = service
        self.random = random.Random(seed)
        self.ended = threading.Event()
        self.count = 0

    def run(self):
        connection, words = None, itertools.cycle(("off", "on"))
        while not self.ended.is_set() or self.count % 2:
            try:
                connection = connection or ServiceConnection(self.service)
                connection.ask(next(words))
                self.count += 1
            except (OSError, AssertionError):
                if self.ended.is_set():
                    break
                connection, words = None, itertools.cycle(("off", "on"))
            time.sleep(self.random.uniform(0.0, 0.05))
        if connection:
            connection.close()

    def stop(self):
        self.ended.set()
        self.join(30)


class ProgramCase(Case):
    """Tests of one program. Subclasses say `program`, the Debian `packages` whose version the document shows, or `version`."""

    limit = 240
    program = ""
    packages = ()
    version_command = ()
    watch = None

    def setUp(self):
        super().setUp()
        if settings.stress:
            self.run_options = ["--upgrade", "eager"]

    def compare(self, workload, ends, carrier, reason, share):
        wanted = self.attempt(workload, NONE)
        self.assertIsNotNone(wanted, "a workload must return what is to be compared")
        if settings.plain:
            return
        # How much has passed before a connection moves is the scheduler's affair: on a busy machine a short workload is
        # tried again before its share is judged. Its results must be right each time.
        for number in range(3):
            self.switched_run(workload, ends, wanted, number)
            if settings.stress or carrier != COMPANION or self.part() >= share:
                break
        if not settings.stress:
            self.check_carrier(carrier, reason, share)

    def part(self):
        """The part of the bytes that went over companions."""
        companion, tcp = self.watch.bytes()
        return companion / (companion + tcp) if companion + tcp else 0.0

    def switched_run(self, workload, ends, wanted, number):
        self.watch = Watch(self.service)
        self.watch.start()
        toggle = Toggle(self.service, settings.seed) if settings.stress == "toggle" else None
        if toggle:
            toggle.start()
        try:
            got = self.attempt(workload, ends, number)
        finally:
            if toggle:
                toggle.stop()
            self.watch.stop()
        self.assertEqual(got, wanted, "the results differ from those on TCP")
        if settings.stress:
            companion, tcp = self.watch.bytes()
            note(f"{companion} bytes over companions, {tcp} over TCP" + (f", {toggle.count} times off or on" if toggle else ""))

    def attempt(self, workload, ends, number=0):
        """One run, in a directory of its own, with nothing left afterwards."""
        self.ends = ends
        self.place = os.path.join(self.directory, f"switched{number or ''}" if ends != NONE else "plain")
        os.mkdir(self.place)
        os.chmod(self.place, 0o711)
        result = workload(self, ends)
        self.stop_programs()
        return result

    def check_carrier(self, carrier, reason, share):
        watch = self.watch
        self.assertTrue(watch.seen, "ps showed no connection")
        companion, tcp = watch.bytes()
        part = self.part()
        reasons = (reason,) if isinstance(reason, str) else reason
        if carrier == STAYS:
            note(f"reasons {sorted(watch.reasons)}")
        note(f"{len(watch.seen)} ends, {part:.1%} over companions")
        if carrier == COMPANION:
            self.assertGreaterEqual(part, share, f"share of the bytes over companions\n{watch.describe()}")
            self.assertFalse(watch.moved_back, watch.describe())
            self.assertFalse(watch.leaks, f"bytes over TCP while on the companion\n{watch.describe()}")
        elif carrier == STAYS:
            self.assertEqual(companion, 0, f"bytes over companions\n{watch.describe()}")
            self.assertTrue(set(reasons) & watch.reasons, watch.describe())
        else:
            self.assertTrue(set(reasons) & set(watch.moved_back.values()), watch.describe())
        observations[f"{type(self).__name__}.{self._testMethodName}"] = {
            "carrier": carrier, "reason": reason, "ends": len(watch.seen), "companion": companion, "tcp": tcp}

    # For workloads

    def new_port(self):
        """A free port, whose connections are watched."""
        port = free_port()
        if self.watch:
            self.watch.ports.add(port)
        return port

    def watch_from_here(self):
        """What was seen so far is not what the row is about."""
        if self.watch:
            self.watch.forget()

    def path(self, name):
        return os.path.join(self.place, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def server(self, arguments, port=None, **options):
        program = self.start(arguments, self.ends.server, **options)
        if port:
            self.wait_listening(port, program)
        return program

    def client(self, arguments, **options):
        """Runs a client to its end; its output is returned."""
        return self.run_program(arguments, self.ends.client, **options).output

    def end(self, program, number=15, seconds=20, expected=0):
        program.kill(number)
        program.wait(seconds, expected)
