"""What users of other systems of this kind complain about, and what those collapsed under: each is a test here, or is
named with the test that covers it in Documentation/Testing.md."""
import os
import re
import signal
import socket
import subprocess
import sys
import time

from harness import Case, PROGRAMS, find_program, free_port, note, settings

PYTHON = os.path.realpath(sys.executable)


ECHO = """
import socket, sys, threading
listener = socket.socket()
listener.bind(('127.0.0.1', int(sys.argv[1])))
listener.listen()
def serve(connection):
    while data := connection.recv(4096):
        connection.sendall(data)
        if data.startswith(b"the end"): return connection.close()
while True: threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"""
TALK_THEN_REST = """
import socket, sys, threading, time
connection = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
rest = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), rest.set()), daemon=True).start()
while not rest.is_set():
    connection.sendall(b'x' * 64)
    connection.recv(64, socket.MSG_WAITALL)
    time.sleep(0.0005)
print('resting')
connection.recv(1)
"""


class Compiled(Case):
    limit = 90

    def compiled(self, name, *options):
        program = os.path.join(self.directory, name)
        subprocess.run([find_program("gcc"), "-O1", "-o", program, os.path.join(PROGRAMS, f"{name}.c"), *options], check=True)
        return program

    def written(self, name, text, *options):
        """A program compiled from `text`."""
        source = os.path.join(self.directory, f"{name}.c")
        with open(source, "w", encoding="utf-8") as file:
            file.write(text)
        subprocess.run([find_program("gcc"), "-O1", "-o", source[:-2], source, *options], check=True)
        return source[:-2]


class Shapes(Compiled):
    """Unfavourable streams: the same bytes, over companions, and no collapse."""

    def pair(self, shape, rounds, switched):
        port = free_port()
        server = self.start([self.program, "server", str(port), shape, str(rounds)], switched)
        self.wait_listening(port, server)
        client = self.start([self.program, "client", str(port), shape, str(rounds)], switched)
        outputs = [end.wait_for_output("done", 60) for end in (server, client)]
        if switched and not settings.plain:
            entries = self.connections(port)
            share, over = self.share(entries)
            self.assertEqual(len(entries), 2, entries)
            self.assertGreater(share, 0.9, entries)
            note(f"{share:.1%} of {over >> 20} MiB over companions")
        for end in (server, client):
            end.process.stdin.close()
            end.wait()
        counts = [tuple(map(int, re.search(r"(\d+) us, (\d+) bytes sent, (\d+) received", text).groups())) for text in outputs]
        self.assertEqual(counts[0][1:], counts[1][:0:-1], outputs)
        return max(count[0] for count in counts), counts[1][1:], outputs

    def compare(self, shape, rounds):
        """Collapse is a hundredth of TCP's speed, not a third; the machine may be busy, so the best of three counts."""
        self.program = self.compiled("shapes")
        on_tcp, switched = [], []
        for _ in range(3):
            micros, counts, _ = self.pair(shape, rounds, switched=False)
            on_tcp.append(micros)
            micros, others, outputs = self.pair(shape, rounds, switched=True)
            switched.append(micros)
            self.assertEqual(counts, others)
            if min(switched) < 3 * min(on_tcp):
                break
        note(f"{shape}: {min(on_tcp)} us on TCP, {min(switched)} us switched")
        self.assertLess(min(switched), 3 * min(on_tcp))
        return outputs

    def test_blocking_and_non_blocking_calls_mixed(self):
        self.compare("mixed", 2000)

    def test_large_after_small(self):
        self.compare("small", 800)

    def test_many_pieces_in_one_call(self):
        self.compare("pieces", 3000)

    def test_signals_all_the_time(self):
        outputs = self.compare("signals", 3000)
        for text in outputs:
            self.assertGreater(int(re.search(r"(\d+) ticks", text).group(1)), 10, text)


class Complaints(Compiled):
    def test_every_connection_says_where_it_is_and_why(self):
        """Silent failure to accelerate: one row for each end, and never a TCP without a reason that fits."""
        port, kept = free_port(), free_port()
        self.run_options = ["--tcp", f"port={kept}"]
        servers = [self.start_python("pump.py", "server", number) for number in (port, kept)]
        for server, number in zip(servers, (port, kept)):
            self.wait_listening(number, server)
        moved = self.start_python("pump.py", "client", port, "pingpong")
        alone = self.start_python("pump.py", "client", port, "pingpong", switched=False)
        by_policy = self.start_python("pump.py", "client", kept, "pingpong")
        silent = self.start([PYTHON, "-c", f"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)"])
        self.run_options = ["--tcp", f"port={port}"]
        by_its_own = self.start_python("pump.py", "client", port, "pingpong")
        if settings.plain:
            return

        def settled():
            report = self.ps()
            self.assertIsNotNone(report, self.ask("ps", "--json", "--service", self.service))
            for entry in report["sockets"]:
                on_tcp = entry["kind"] in ("connected", "accepted") and "tcp" in (entry["sendCarrier"], entry["receiveCarrier"])
                self.assertTrue(entry["reasonText"])
                if on_tcp:
                    self.assertNotEqual(entry["reason"], "none", entry)
            reasons = {
                (entry["kind"], entry["local"].endswith(f":{kept}") or entry["peer"].endswith(f":{kept}"), entry["reason"])
                for entry in report["sockets"] if entry["kind"] != "fresh"}
            return {("accepted", False, "none"), ("connected", False, "none"), ("accepted", False, "peerNotSwitched"),
                    ("connected", True, "policy"), ("accepted", True, "policy"),
                    ("connected", False, "policy"), ("accepted", False, "peerPolicy"),
                    ("connected", False, "notWorthItYet"), ("accepted", False, "notWorthItYet")} <= reasons
        self.wait_until(settled, "both ends of every connection say what they are", 20, lambda: str(self.ps()))
        for client in (moved, alone, by_policy, by_its_own, silent):
            self.assertTrue(client.running(), client.describe())

    def test_a_shell_keeps_its_service(self):
        """A command that makes no socket of its own, but starts others that do."""
        if settings.plain:
            return
        shell = self.start(["sh", "-c", "sleep 3; echo later; exec sleep 60"])
        shell.wait_for_output("later")
        self.assertIsNotNone(self.service_pid(), "the service has ended under the shell")
        shell.kill()
        self.wait_until(lambda: not os.path.exists(self.service), "the service ends after the shell")

    def test_a_service_that_hangs_holds_nobody_up(self):
        if settings.plain:
            return
        port = free_port()
        server = self.start_python("pump.py", "server", port)
        self.wait_listening(port, server)
        service = self.service_pid()
        os.kill(service, signal.SIGSTOP)
        try:
            # Its connection to the service is made all the same: what it announces waits.
            client = self.start_python("pump.py", "client", port, "pingpong")
            client.wait_for_output("running", 15)
            self.assertIn("does not answer", client.errors)
        finally:
            os.kill(service, signal.SIGCONT)
        self.prove_companion(port, client)

    def test_a_service_that_hangs_keeps_no_end_from_a_peer(self):
        """Who has announced a connection, and exits or closes it: its peer hears of the end, and is refused what it sends then."""
        port = free_port()
        server = self.start([PYTHON, "-c", "\n".join((
            "import socket, sys, time",
            "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))",
            "for number in range(100):",
            "    one, _ = listener.accept()",
            "    while data := one.recv(100): one.sendall(data)",
            "    print(f'ended {number}.', flush=True)",
            "    try:",
            "        while True: one.sendall(bytes(1000)), time.sleep(.005)",
            "    except OSError: print(f'refused {number}.', flush=True)")), str(port)])
        self.wait_listening(port, server)
        service = None if settings.plain else self.service_pid()
        if service:
            os.kill(service, signal.SIGSTOP)
        try:
            for number, way in enumerate(("sys.exit()", "os._exit(0)", "one.close(), time.sleep(60)")):
                client = self.start([PYTHON, "-c", "\n".join((
                    "import os, socket, sys, time",
                    "one = socket.create_connection(('127.0.0.1', int(sys.argv[1])))",
                    "for _ in range(8): one.sendall(b'x'), one.recv(1)",
                    way)), str(port)])
                server.wait_for_output(f"ended {number}.", 10)
                server.wait_for_output(f"refused {number}.", 10)
                client.kill()
        finally:
            if service:
                os.kill(service, signal.SIGCONT)

    def test_waiting_costs_no_processor(self):
        """A blocked reader, an idle epoll loop, and the service, while nothing happens."""
        port = free_port()
        server = self.start([PYTHON, "-c", ECHO, str(port)])
        self.wait_listening(port, server)
        clients = [self.start([PYTHON, "-c", TALK_THEN_REST, str(port)]) for _ in range(3)]
        if not settings.plain:
            self.wait_until(lambda: len([entry for entry in self.connections(port) if entry["carrierChanges"] >= 2]) == 6,
                            "all have moved", describe=lambda: str(self.connections(port)))
        for client in clients:
            client.tell("rest")
            client.wait_for_output("resting")
        pids = [program.pid for program in (server, *clients)] + ([] if settings.plain else [self.service_pid()])

        def used():
            total = 0
            for pid in pids:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    fields = file.read().rsplit(b")", 1)[1].split()
                total += int(fields[11]) + int(fields[12])
            return total / os.sysconf("SC_CLK_TCK")
        time.sleep(0.3)  # they may look a while before they sleep
        before = used()
        time.sleep(2)
        seconds = used() - before
        note(f"{seconds:.2f} s of CPU time in 2 s, {len(pids)} processes")
        # One that looked all the time would use 2.
        self.assertLess(seconds, 0.2)

    def test_ends_do_not_hang(self):
        """connect, close and exit against a peer that does nothing, because it is stopped."""
        port = free_port()
        server = self.start_python("pump.py", "server", port)
        self.wait_listening(port, server)
        client = self.start_python("pump.py", "client", port, "pingpong")
        client.wait_for_output("running")
        if not settings.plain:
            self.prove_companion(port, server)
        server.kill(signal.SIGSTOP)
        try:
            script = (
                "import socket, sys\n"
                f"c = socket.create_connection(('127.0.0.1', {port}))\n"
                "c.setblocking(False)\n"
                "total = 0\n"
                "try:\n"
                "    while True: total += c.send(bytes(65536))\n"
                "except BlockingIOError: pass\n"
                "c.shutdown(socket.SHUT_WR)\n"
                "d = c.dup(); c.close(); d.close()\n"
                f"e = socket.create_connection(('127.0.0.1', {port})); e.sendall(b'x' * 100)\n"
                "print('gone', total > 65536)\n")
            ending = self.start([PYTHON, "-c", script], environment={"SOCKSWITCH_UPGRADE": "eager"})
            ending.wait(20)
            self.assertIn("gone True", ending.output)
            client.kill(signal.SIGTERM)
            client.wait(10, expected=-signal.SIGTERM)
        finally:
            server.kill(signal.SIGCONT)
        server.wait_for_output('"event": "eof"' if settings.plain else '"event": "')
        self.assertTrue(server.running())

    def test_programs_that_cannot_be_switched_are_named(self):
        """A static program never loads the library: `run` says so, and the program works."""
        program = self.written("static", "#include <stdio.h>\nint main(void) { puts(\"well\"); return 3; }\n", "-static")
        ran = self.run_program([program], expected=3)
        self.assertEqual(ran.output, "well\n")
        if not settings.plain:
            self.assertIn("static", ran.errors)

    def test_an_io_uring_made_by_a_bare_system_call_is_seen(self):
        port = free_port()
        server = self.start([PYTHON, "-c", ECHO, str(port)])
        self.wait_listening(port, server)
        program = self.written("ring", """
            #define _GNU_SOURCE
            #include <arpa/inet.h>
            #include <errno.h>
            #include <stdio.h>
            #include <stdlib.h>
            #include <string.h>
            #include <sys/socket.h>
            #include <sys/syscall.h>
            #include <unistd.h>
            int main(int count, char **arguments) {
                char parameters[120] = {0}, block[64] = "request", answer[64];
                long ring = syscall(SYS_io_uring_setup, 4, parameters);
                if (ring < 0 && errno != ENOSYS && errno != EPERM) return 1;
                struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
                int fd = socket(AF_INET, SOCK_STREAM, 0);
                if (connect(fd, (void *)&address, sizeof address)) return 1;
                printf("talking, ring %s\\n", ring < 0 ? "refused" : "made"), fflush(stdout);
                for (;;) {
                    if (send(fd, block, 64, 0) != 64 || recv(fd, answer, 64, MSG_WAITALL) != 64 || memcmp(block, answer, 64)) return 1;
                    usleep(1000);
                }
            }
            """, "-w")
        client = self.start([program, str(port)])
        if "refused" in client.wait_for_output("talking"):
            self.fail("this kernel lets nobody make an io_uring: the test cannot run")
        self.prove_tcp(port, "ioUring", client)

    def test_an_io_uring_of_liburing_is_watched(self):
        """While it works on files the sockets stay where they are; when it takes one of them, all are on TCP."""
        program, newer = os.path.join(self.directory, "ring"), os.path.join(self.directory, "libnewer.so")
        compiler = [find_program("gcc"), "-O1", "-w", "-o"]
        subprocess.run([*compiler, newer, "-shared", "-fPIC", os.path.join(PROGRAMS, "newer_ring.c")], check=True)
        subprocess.run([*compiler, program, os.path.join(PROGRAMS, "ring.c"), newer, "-luring"], check=True)
        for what in ("files", "socket", "registered", "enter", "newer0", "newer1", "newer2", "left"):
            with self.subTest(what):
                port = free_port()
                server = self.start([PYTHON, "-c", ECHO, str(port)])
                self.wait_listening(port, server)
                client = self.start([program, str(port), os.path.join(self.directory, f"file-{what}"), what], name=f"ring-{what}")
                client.wait_for_output("talking")
                client.wait_for_output("round 300")
                if not settings.plain:
                    seen = [(entry["sendCarrier"], entry["receiveCarrier"]) for entry in self.connections(port)]
                    if what in ("files", "left"):
                        self.assertEqual(set(seen), {("companion", "companion")})
                    else:
                        def is_back():
                            found = self.connections(port)
                            return any(entry["reason"] == "ioUring" and entry["sendCarrier"] == "tcp" for entry in found) or None
                        self.wait_until(is_back, "the connection is on TCP because of the ring", 10)
                client.wait_for_output("round 600")
                self.assertTrue(client.running())

    def test_an_io_uring_of_a_liburing_that_is_loaded_later(self):
        """A program that knows nothing of liburing loads a plugin that was linked with it: the ring works, and is watched."""
        for library in ("-luring", "-l:liburing.a"):
            with self.subTest(library):
                self.load_ring(library)

    def load_ring(self, library):
        plugin = os.path.join(self.directory, "libplugin.so")
        subprocess.run([find_program("gcc"), "-O1", "-w", "-shared", "-fPIC", "-o", plugin,
                        os.path.join(PROGRAMS, "ring_plugin.c"), library], check=True)
        program = self.written("loader", """
            #include <dlfcn.h>
            #include <stdio.h>
            int main(int count, char **arguments) {
                void *plugin = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
                if (!plugin) return puts(dlerror()), 1;
                return ((int (*)(const char *))dlsym(plugin, "use_ring"))(arguments[2]);
            }
            """, "-w")
        port = free_port()
        server = self.start([PYTHON, "-c", ECHO, str(port)])
        self.wait_listening(port, server)
        client = self.start([program, plugin, str(port)])
        client.wait_for_output("round 300")
        if not settings.plain:
            self.assertEqual({(e["sendCarrier"], e["receiveCarrier"]) for e in self.connections(port)}, {("companion", "companion")})
        client.tell("send")
        client.wait_for_output("sent by the ring")
        if not settings.plain:
            def is_back():
                return any(e["reason"] == "ioUring" and e["sendCarrier"] == "tcp" for e in self.connections(port)) or None
            self.wait_until(is_back, "the connection is on TCP because of the ring", 10)
        self.assertTrue(client.running())

    def test_one_host_by_all_its_names(self):
        """Loopback and the host's own addresses, IPv4 and IPv6, listeners on one address and on all."""
        own = subprocess.run(["hostname", "-I"], stdout=subprocess.PIPE, text=True, check=False).stdout.split()
        names = ["127.0.0.1", "127.9.8.7", "localhost", "::1", "::ffff:127.0.0.1", *own[:2]]
        tried = []
        for name in names:
            family, _, _, _, address = socket.getaddrinfo(name, 1, type=socket.SOCK_STREAM)[0]
            for bound in (address[0], "0.0.0.0" if family == socket.AF_INET else "::"):
                port = free_port()
                server = self.start([PYTHON, "-c", (
                    "import socket, sys\n"
                    f"l = socket.socket(socket.{family.name}); l.bind(('{bound}', {port})); l.listen()\n"
                    "c, _ = l.accept()\n"
                    "while True:\n"
                    "    d = c.recv(100)\n"
                    "    if not d: break\n"
                    "    c.sendall(d)\n")])
                self.wait_listening(port, server)
                client = self.start([PYTHON, "-c", (
                    "import socket, time\n"
                    f"c = socket.create_connection(('{address[0]}', {port}))\n"
                    "while True:\n"
                    "    c.sendall(b'0123456789'); c.recv(10); time.sleep(0.001)\n")])
                if settings.plain:
                    continue

                def moved(port=port):
                    found = self.connections(port)
                    return len(found) == 2 and all(entry["sendCarrier"] == entry["receiveCarrier"] == "companion" for entry in found)
                self.wait_until(moved, f"{name}, listener on {bound}: moved", 20, lambda port=port: str(self.connections(port)))
                tried.append(f"{name}/{bound}")
                client.kill()
                server.wait(10, None)  # a reset, if the client had not read its last answer
        note(", ".join(tried))
