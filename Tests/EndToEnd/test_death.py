"""kill -9 of client, server or service at random moments under load."""
import json
import os
import random
import signal
import time

from harness import Case, descriptors, free_port, memfd_mappings, note, settings

MODES = ["pingpong", "download", "upload", "both", "epoll", "stuck", "idle"]
ENDS = ("eof", "reset", "pipe")


class SuddenDeath(Case):
    service_killed = True

    def time_limit(self):
        return 120 + settings.death_rounds * 6

    def start_server(self):
        self.port = free_port()
        self.server = self.start_python("pump.py", "server", self.port, name="pump-server")
        self.server.wait_for_output("listening")

    def start_client(self, mode):
        client = self.start_python("pump.py", "client", self.port, mode, name=f"pump-{mode}")
        client.wait_for_output("running")
        return client

    @staticmethod
    def events(program):
        return [json.loads(line) for line in program.output.splitlines() if line.startswith("{")]

    def own_port(self, client):
        return next(event["peer"] for event in self.events(client) if event["event"] == "running")

    def check_survivor(self, program, peer, killed_at, what):
        def found():
            for event in self.events(program):
                self.assertNotEqual(event["event"], "corrupt", f"{what}\n{program.describe()}")
                if event["event"] in ENDS and event["peer"] == peer:
                    return event
            return None
        event = self.wait_until(found, f"{what}: the survivor notices", 10, lambda: self.situation(program))
        self.slowest = max(self.slowest, event["at"] - killed_at)
        self.assertLess(event["at"] - killed_at, 1.0, f"{what}: noticed late ({event})\n{self.situation(program)}")

    def situation(self, program):
        report = "" if settings.plain else json.dumps((self.ps() or {}).get("sockets", []))
        return f"{program.describe()}\n{report}"

    def footprint(self, pid):
        return len(descriptors(pid)), memfd_mappings(pid)

    def kill(self, pid):
        moment = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return moment

    def kill_service(self):
        pid = None if settings.plain else self.service_pid()
        if pid:
            self.kill(pid)

    def test_at_random_moments(self):
        rng = random.Random(settings.seed)
        self.slowest = 0.0
        self.start_server()
        first = None
        counts = {"client": 0, "server": 0, "service": 0}
        for number in range(settings.death_rounds):
            victim = rng.choice(["client", "client", "client", "server", "service"])
            # A client that reads nothing sees no end of file on TCP either while the dead server's bytes wait for it.
            mode = rng.choice([mode for mode in MODES if (victim, mode) != ("server", "stuck")])
            what = f"round {number} (seed {settings.seed}): kill -9 of the {victim} in mode {mode}"
            counts[victim] += 1
            client = self.start_client(mode)
            peer = self.own_port(client)
            time.sleep(rng.random() * 0.3)
            self.assertTrue(client.running() and self.server.running(), f"{what}\n{self.situation(client)}")
            if victim == "client":
                self.check_survivor(self.server, peer, self.kill(client.pid), what)
                client.wait(10, None)
                first = self.check_footprint(first, what)
            elif victim == "server":
                self.check_survivor(client, peer, self.kill(self.server.pid), what)
                client.wait(10, None)
                self.server.wait(10, None)
                self.start_server()
                first = None
            else:
                self.kill_service()
                self.check_goes_on(client, mode, what)
                self.check_survivor(self.server, peer, self.kill(client.pid), what + ", then of the client")
                client.wait(10, None)
                # A new service for the rounds to come: the old server reaches it again or stays on TCP.
                self.server.kill()
                self.server.wait(10, None)
                self.start_server()
                first = None
        note(f"{counts}, slowest {self.slowest * 1000:.0f} ms")

    def check_goes_on(self, client, mode, what):
        def moved():
            before = len([event for event in self.events(client) if event["event"] == "moved"])
            client.tell("?")
            self.wait_until(lambda: len([e for e in self.events(client) if e["event"] == "moved"]) > before, what, 10,
                            lambda: self.situation(client))
            return [event for event in self.events(client) if event["event"] == "moved"][-1]["bytes"]
        start = moved()
        if mode not in ("idle", "stuck"):
            self.wait_until(lambda: moved() > start + 10000, f"{what}: bytes move on", 20, lambda: self.situation(client))
        self.assertTrue(client.running() and self.server.running(), f"{what}\n{self.situation(client)}")

    def check_footprint(self, first, what):
        """The surviving server holds no more descriptors and mappings than after the first death."""
        now = self.footprint(self.server.pid)
        if first is None:
            # The library keeps what it needs once a process; wait until the connection's own things are gone.
            self.settle()
            return self.footprint(self.server.pid)
        self.wait_until(
            lambda: all(a <= b for a, b in zip(self.footprint(self.server.pid), first)),
            f"{what}: the server gives back descriptors and mappings", 10,
            lambda: f"after the first death {first}, now {now}\n{descriptors(self.server.pid)}")
        return first

    def settle(self):
        last, since = None, time.monotonic()
        while time.monotonic() - since < 0.3:
            current = self.footprint(self.server.pid)
            if current != last:
                last, since = current, time.monotonic()
            time.sleep(0.02)

    def test_service_gives_everything_back(self):
        """Many connections come and die; the service's descriptors do not grow."""
        if settings.plain:
            self.skipTest("there is no service")
        self.slowest = 0.0
        self.start_server()
        base = None
        for number in range(6):
            clients = [self.start_client(mode) for mode in ("pingpong", "both", "idle")]
            for client in clients:
                self.kill(client.pid)
                client.wait(10, None)
            pid = self.service_pid()
            if base is None:
                time.sleep(0.5)
                base = len(descriptors(pid))
            self.wait_until(lambda: len(descriptors(pid)) <= base, "the service closes what the dead held", 10,
                            lambda: f"{base} after the first round, now {descriptors(pid)}")
