"""Every byte of random streams, while the operator changes the carriers under them."""
import json
import os
import random
import time

from harness import Case, ServiceConnection, free_port, kernel_counters, note, settings, tool


EAGER = {"environment": {"SOCKSWITCH_UPGRADE": "eager"}}


class Stream(Case):
    limit = 90

    def time_limit(self):
        return self.limit + settings.stream_seconds * 3

    def start_pair(self, *options, both_switched=True, address="127.0.0.1", seconds=None, environment=None):
        self.port = free_port()
        program = tool("StreamPair")
        self.assertTrue(os.path.exists(program), f"{program} is missing (swift build)")
        environment = environment or {}
        self.server = self.start(
            [program, "server", "--port", str(self.port), "--address", address, "--stall", "20"], both_switched,
            name="StreamPair-server", environment=environment)
        self.server.wait_for_output("port")
        self.client = self.start(
            [program, "client", "--port", str(self.port), "--address", address, "--seed", str(settings.seed),
             "--seconds", str(seconds or settings.stream_seconds), "--stall", "20", *options],
            name="StreamPair-client", environment=environment)

    def finish(self):
        seconds = settings.stream_seconds + 60
        code = self.client.wait(seconds, None)
        if code != 0:
            self.fail(f"seed {settings.seed}\n{self.client.describe()}\n{self.server.describe()}\n"
                      f"{json.dumps((self.ps() or {}).get('sockets', [])[:20]) if not settings.plain else ''}")
        self.server.wait(30)
        result = json.loads(self.client.output)
        self.assertGreater(result["bytesChecked"], 1_000_000)
        note(f"{result['connections']} connections, {result['bytesChecked'] >> 20} MiB checked at the client")

    def watch(self, toggling):
        """Asks `ps` (and switches off and on all the time) until the client ends; the carrier changes and the bytes over
        companions that were seen. What happened to a connection after the last look at it is not counted."""
        changes, companion = {}, {}
        rng = random.Random(settings.seed)
        service = ServiceConnection(self.service)
        try:
            off = False
            next_look = 0.0
            while self.client.running():
                if time.monotonic() >= next_look:
                    for entry in service.sockets():
                        if entry["kind"] not in ("connected", "accepted"):
                            continue
                        key = (entry["local"], entry["peer"])
                        changes[key] = max(changes.get(key, 0), entry["carrierChanges"])
                        companion[key] = entry["bytes"]["companionSent"] + entry["bytes"]["companionReceived"]
                    next_look = time.monotonic() + 0.02
                if toggling:
                    off = not off
                    service.ask("off" if off else "on")
                # Any moment will do; off is mostly short, so that the connections come back to their companions.
                time.sleep(rng.random() ** 3 * (0.004 if off else 0.02) if toggling else 0.02)
            service.ask("on")
        finally:
            service.close()
        return sum(changes.values()), sum(companion.values())

    def change_and_finish(self):
        """Off and on until the client ends; the carriers did change, and companions did carry."""
        if not settings.plain:
            changes, companion = self.watch(True)
            note(f"{changes} carrier changes seen")
            self.assertGreater(changes, 10, "hardly any carrier change was seen")
            self.assertGreater(companion, 0, "no bytes over companions were seen")
        self.finish()

    def test_checked_on_companions(self):
        self.start_pair(**EAGER)
        if not settings.plain:
            changes, companion = self.watch(False)
            self.assertGreater(companion, 1_000_000, "no bytes over companions were seen")
            note(f"{changes} carrier changes seen")
        self.finish()

    def test_carrier_changes(self):
        self.start_pair("--connections", "4", "--minimum-bytes", str(4 << 20), "--maximum-bytes", str(256 << 20), **EAGER)
        self.change_and_finish()

    def test_carrier_changes_between_users(self):
        """Ends of two users wake each other through sockets: neither can make the other wait for what both hold."""
        if os.geteuid() != 0:
            self.skipTest("needs root")
        os.chmod(self.service_directory, 0o711)
        self.start_pair("--user", "65534", "--minimum-bytes", str(4 << 20), "--maximum-bytes", str(256 << 20), **EAGER)
        self.change_and_finish()

    def test_carrier_changes_request_and_answer(self):
        self.start_pair("--only", "lockstep", "--minimum-bytes", str(32 << 20), "--maximum-bytes", str(1 << 30), **EAGER)
        if not settings.plain:
            changes, _ = self.watch(True)
            note(f"{changes} carrier changes seen")
            self.assertGreater(changes, 10, "hardly any carrier change was seen")
        self.finish()

    def test_carrier_changes_forked(self):
        self.start_pair("--only", "forked", "--minimum-bytes", str(4 << 20), "--maximum-bytes", str(256 << 20), **EAGER)
        if not settings.plain:
            changes, _ = self.watch(True)
            note(f"{changes} carrier changes seen")
        self.finish()

    def test_ipv6(self):
        self.start_pair(address="::1", seconds=min(settings.stream_seconds, 5))
        if not settings.plain:
            _, companion = self.watch(False)
            self.assertGreater(companion, 0, "no bytes over companions were seen")
        self.finish()

    def test_announced_by_several_threads(self):
        """Many short connections, each with several threads that find it worth a companion at the same moment."""
        self.start_pair("--only", "contended", "--maximum-bytes", "20000", seconds=min(settings.stream_seconds, 8))
        if not settings.plain:
            _, companion = self.watch(False)
            self.assertGreater(companion, 0, "no bytes over companions were seen")
        self.finish()

    def test_one_end_switched(self):
        self.start_pair(both_switched=False, seconds=min(settings.stream_seconds, 3))
        self.finish()

    def test_both_ends_in_one_process(self):
        program = self.start(
            [tool("StreamPair"), "both", "--seed", str(settings.seed), "--seconds", str(min(settings.stream_seconds, 5)),
             "--stall", "20"], name="StreamPair-both")
        program.wait(settings.stream_seconds + 60)

    def test_both_ends_in_one_thread(self):
        """A writer must not block where TCP's buffers would have taken the bytes."""
        self.start_python("self_talk.py", 64 << 10, 200).wait(60)
        self.start_python("self_talk.py", 2 << 20, 20).wait(60)


class OffAndOn(Case):
    def test_live_redis_connection(self):
        port = free_port()
        server = self.start(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", self.directory])
        self.wait_listening(port, server)
        session = self.start_python("redis_session.py", port, settings.seed, 500)
        session.wait_for_output("digest")
        session.tell("steady")

        def carriers():
            found = self.connections(port)
            if len(found) != 2:
                return None
            return {entry[key] for entry in found for key in ("sendCarrier", "receiveCarrier")}
        if not settings.plain:
            self.prove_companion(port, session)
            for _ in range(50 if settings.long else 10):
                self.turn("off")
                self.wait_until(lambda: carriers() == {"tcp"}, "both ends are back on TCP", 15,
                                lambda: "\n".join(map(json.dumps, self.connections(port))))
                self.assertEqual({entry["reason"] for entry in self.connections(port)}, {"switchedOff"})
                before = sum(entry["sent"] for entry in kernel_counters(port))
                self.wait_until(lambda: sum(entry["sent"] for entry in kernel_counters(port)) > before + 10000,
                                "traffic goes on over TCP", 15)
                self.turn("on")
                self.wait_until(lambda: carriers() == {"companion"}, "both ends are on the companion again", 15,
                                lambda: "\n".join(map(json.dumps, self.connections(port))))
        session.tell("end")
        session.wait()
        self.assertIn("done", session.output)

    def test_off_wakes_sleeping_ends(self):
        """Both ends sleep in a blocking recv while the operator switches off and on; then they talk on."""
        port = free_port()
        server = self.start_python("pump.py", "server", port)
        server.wait_for_output("listening")
        client = self.start_python("pump.py", "client", port, "idle")
        client.wait_for_output("running")
        if not settings.plain:
            for _ in range(10):
                self.turn("off")
                self.turn("on")
        self.assertTrue(client.running() and server.running())
        client.kill()
        server.wait_for_output('"eof"')

    def test_started_while_off(self):
        port = free_port()
        server = self.start(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", self.directory])
        self.wait_listening(port, server)
        if not settings.plain:
            self.turn("off")
        session = self.start_python("redis_session.py", port, settings.seed, 500)
        session.wait_for_output("digest")
        session.tell("steady")
        self.prove_tcp(port, "switchedOff", session)
        if not settings.plain:
            self.turn("on")
        self.prove_companion(port, session)
        session.tell("end")
        session.wait()
