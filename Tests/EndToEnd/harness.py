"""What the end-to-end tests share: starting programs with and without the switch, asking `sockswitch ps` and the kernel,
waiting with deadlines, and looking in /proc for anything left behind."""
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = os.path.join(HERE, "programs")


class Settings:
    build_dir = ""
    plain = False
    long = False
    #: Of the program matrix: None, "eager" or "toggle".
    stress = None
    seed = 1
    stream_seconds = 5.0
    death_rounds = 20


settings = Settings()
_notes = []


def note(text):
    """A remark for the line of the running test."""
    _notes.append(text)


def take_notes():
    taken = list(_notes)
    _notes.clear()
    return taken


def short_name(test):
    return test.id().removeprefix("test_")


def become_subreaper():
    """Orphans of the programs become our children, so that none can hide."""
    PR_SET_CHILD_SUBREAPER = 36
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def tool(name):
    """Path of one of this project's programs."""
    path = os.path.join(settings.build_dir, name)
    # SwiftPM cannot give the command the name that the library's product has: installing renames it.
    if name == "sockswitch" and not os.path.isfile(path):
        path = os.path.join(settings.build_dir, "sockswitch-tool")
    return path


def find_program(name):
    for directory in os.environ.get("PATH", "").split(":") + ["/usr/sbin", "/usr/local/sbin", "/sbin"]:
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise AssertionError(f"{name} is not installed (scripts/install-deps.sh)")


def free_port():
    """A port that was free a moment ago, below the range of ephemeral ports so that no connection takes it."""
    for port in range(20000 + os.getpid() % 5000, 32000):
        if port in free_port.used:
            continue
        free_port.used.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no free port")


free_port.used = set()


def processes():
    """{pid: (parent, state)} of all live processes."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rsplit(b")", 1)[1].split()
                found[int(name)] = (int(fields[1]), fields[0].decode())
            except (OSError, IndexError):
                pass
    return found


def descendants(root=None):
    """Live (not zombie) descendants of this process."""
    root = root or os.getpid()
    table = processes()
    children = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [root]
    while queue:
        for pid in children.get(queue.pop(), []):
            queue.append(pid)
            if table[pid][1] not in "ZX":
                found.append(pid)
    return found


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def descriptors(pid):
    """{number: link} of a process's descriptors."""
    found = {}
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                pass
    except OSError:
        pass
    return found


def memfd_mappings(pid):
    """Number of mappings of memory files in a process."""
    try:
        with open(f"/proc/{pid}/maps") as file:
            return sum("memfd:" in line for line in file)
    except OSError:
        return 0


def listening_ports():
    """Ports on which anybody listens, without connecting to any."""
    ports = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}") as file:
                for line in file.readlines()[1:]:
                    fields = line.split()
                    if fields[3] == "0A":
                        ports.add(int(fields[1].rsplit(":", 1)[1], 16))
        except OSError:
            pass
    return ports


def kernel_counters(port):
    """The kernel's own TCP counters of every established socket with `port` at either end."""
    text = subprocess.run(
        ["ss", "-tinH", "state", "established", f"( sport = :{port} or dport = :{port} )"],
        stdout=subprocess.PIPE, check=True, text=True).stdout
    found = []
    for line in text.splitlines():
        if line[:1] not in " \t":
            fields = line.split()
            found.append({"local": fields[2], "peer": fields[3], "sent": 0, "received": 0})
        elif found:
            for key, word in (("sent", "bytes_sent"), ("received", "bytes_received")):
                match = re.search(rf"\b{word}:(\d+)", line)
                if match:
                    found[-1][key] = int(match.group(1))
    return found


class ServiceConnection:
    """Commands to the service as `sockswitch` sends them (Sources/Rendezvous/Messages.swift), many a second: one packet of
    128 bytes there, packets of text and a last one of 128 bytes back."""

    MAGIC, TOOL, TOOL_END = 0x53535703, 8, 9

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.socket.connect(path)

    def ask(self, command):
        self.socket.send(struct.pack("=II64x56s", self.MAGIC, self.TOOL, command.encode()))
        answer = b""
        while True:
            packet = self.socket.recv(1 << 17)
            if not packet:
                raise AssertionError(f"the service ended the connection at {command}")
            if len(packet) == 128 and struct.unpack_from("=II", packet) == (self.MAGIC, self.TOOL_END):
                return answer
            answer += packet

    def sockets(self):
        return json.loads(self.ask("ps"))["sockets"]

    def close(self):
        self.socket.close()


class Deadline(Exception):
    """The watchdog of a test."""


class Program:
    """A started program; its output is in files."""

    def __init__(self, case, arguments, switched, environment=None, name=None, directory=None):
        self.case = case
        self.switched = switched and not settings.plain
        self.name = name or os.path.basename(arguments[0])
        number = len(case.programs)
        self.out_path = os.path.join(case.directory, f"{number}-{self.name}.out")
        self.error_path = os.path.join(case.directory, f"{number}-{self.name}.err")
        command = case.switch_command(arguments) if self.switched else arguments
        with open(self.out_path, "wb") as out, open(self.error_path, "wb") as error:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=error, cwd=directory or case.directory,
                env={**case.environment, **(environment or {})})
        case.programs.append(self)

    @property
    def pid(self):
        return self.process.pid

    @property
    def output(self):
        with open(self.out_path, errors="replace") as file:
            return file.read()

    @property
    def errors(self):
        with open(self.error_path, errors="replace") as file:
            return file.read()

    def tell(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def running(self):
        return self.process.poll() is None

    def wait(self, seconds=60, expected=0):
        """Waits for the end and checks the exit code (None: any)."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.case.fail(f"{self.name} did not end within {seconds} s\n{self.describe()}")
        if expected is not None and code != expected:
            self.case.fail(f"{self.name} ended with {code}, not {expected}\n{self.describe()}")
        return code

    def wait_for_output(self, text, seconds=20):
        """Waits until `text` is in the output; the output is returned."""
        def found():
            output = self.output
            if text in output:
                return output
            if not self.running():
                output = self.output
                if text in output:
                    return output
                self.case.fail(f"{self.name} ended without saying {text!r}\n{self.describe()}")
            return None
        return self.case.wait_until(found, f"{self.name} says {text!r}", seconds, self.describe)

    def kill(self, number=signal.SIGKILL):
        if self.running():
            try:
                self.process.send_signal(number)
            except ProcessLookupError:
                pass

    def describe(self):
        return (f"-- {self.name} (pid {self.pid}, {'running' if self.running() else self.process.returncode}) output:\n"
                f"{self.output[-3000:]}\n-- errors:\n{self.errors[-3000:]}")


class Case(unittest.TestCase):
    """A test with a private service, a temporary directory, a watchdog, and a search for leftovers at its end."""

    #: Seconds before the watchdog ends the test.
    limit = 120
    #: True in tests that kill the service: its socket file may stay.
    service_killed = False
    maxDiff = None

    def run(self, result=None):
        def bark(number, frame):
            raise Deadline(f"not done after {self.time_limit()} s")
        before = signal.signal(signal.SIGALRM, bark)
        signal.alarm(int(self.time_limit()))
        try:
            return super().run(result)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    def time_limit(self):
        return self.limit * (10 if settings.long else 1)

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="sockswitch-e2e-")
        os.chmod(self.directory, 0o711)
        self.service_directory = os.path.join(self.directory, "service")
        os.mkdir(self.service_directory, 0o700)
        self.service = os.path.join(self.service_directory, "service.sock")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("SOCKSWITCH_")}
        self.environment["SOCKSWITCH_SERVICE"] = self.service
        self.environment["PYTHONUNBUFFERED"] = "1"
        self.programs = []
        self.run_options = []
        self.children_before = set(descendants())
        self.shared_memory_before = set(os.listdir("/dev/shm"))

    def tearDown(self):
        signal.alarm(60)
        try:
            self.stop_programs()
            failed = sys.exc_info()[0] is not None
            left = self.wait_for_no_children(10)
            complaints = [f"process {pid} is left: {command_line(pid)}" for pid in left]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            self.wait_for_no_children(10)
            files = os.listdir(self.service_directory)
            if files and not self.service_killed:
                complaints.append(f"files are left beside the service's socket: {files}")
            shared = set(os.listdir("/dev/shm")) - self.shared_memory_before
            complaints += [f"/dev/shm/{name} is left" for name in shared if "sockswitch" in name.lower()]
        finally:
            if os.environ.get("KEEP"):
                print(f"[kept {self.directory}]")
            else:
                shutil.rmtree(self.directory, ignore_errors=True)
        if complaints and not failed:
            self.fail("; ".join(complaints))

    def stop_programs(self):
        """Politely first: nginx's workers and the like end with their parent."""
        for number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 20)):
            deadline = time.monotonic() + seconds
            for program in self.programs:
                program.kill(number)
            for program in self.programs:
                try:
                    program.process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass
        for program in self.programs:
            try:
                program.process.stdin.close()
            except OSError:
                pass

    def wait_for_no_children(self, seconds):
        """Reaps orphans; the service ends by itself after its last client."""
        deadline = time.monotonic() + seconds
        while True:
            known = {program.pid for program in self.programs if program.process.returncode is None}
            for pid, (parent, state) in processes().items():
                if parent == os.getpid() and state == "Z" and pid not in known:
                    try:
                        os.waitpid(pid, os.WNOHANG)
                    except ChildProcessError:
                        pass
            left = set(descendants()) - self.children_before
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.02)

    # Starting

    def switch_command(self, arguments):
        return [tool("sockswitch"), "run", "--service", self.service, *self.run_options, "--", *arguments]

    def start(self, arguments, switched=True, **options):
        arguments = list(arguments)
        if "/" not in arguments[0]:
            arguments[0] = find_program(arguments[0])
        return Program(self, arguments, switched, **options)

    def start_python(self, script, *arguments, switched=True, **options):
        path = os.path.join(PROGRAMS, script)
        options.setdefault("name", script)
        return self.start([os.path.realpath(sys.executable), path, *map(str, arguments)], switched, **options)

    def run_program(self, arguments, switched=True, seconds=60, expected=0, **options):
        program = self.start(arguments, switched, **options)
        program.wait(seconds, expected)
        return program

    # Waiting

    def wait_until(self, condition, what, seconds=20, describe=None):
        """Polls until `condition` gives something true, and returns it."""
        deadline = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                self.fail(f"not within {seconds} s: {what}\n{describe() if describe else ''}")
            time.sleep(0.005)

    def wait_listening(self, port, program=None):
        def ready():
            if program and not program.running():
                self.fail(f"the server ended\n{program.describe()}")
            return port in listening_ports()
        self.wait_until(ready, f"somebody listens on port {port}")

    # Asking the switch

    def ask(self, *command):
        return subprocess.run(
            [tool("sockswitch"), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment,
            text=True, timeout=20)

    def ps(self):
        """The whole report, or None when there is no service."""
        answer = self.ask("ps", "--json", "--service", self.service)
        if answer.returncode != 0:
            return None
        return json.loads(answer.stdout)

    def connections(self, port):
        """Reports of the connected sockets with `port` at either end."""
        report = self.ps() or {"sockets": []}
        return [entry for entry in report["sockets"] if entry["kind"] in ("connected", "accepted")
                and (entry["local"].endswith(f":{port}") or entry["peer"].endswith(f":{port}"))]

    def service_pid(self):
        report = self.ps()
        return report["service"]["pid"] if report else None

    def turn(self, word):
        """`off` or `on`."""
        answer = self.ask(word, "--service", self.service)
        self.assertEqual(answer.returncode, 0, f"sockswitch {word}: {answer.stdout}{answer.stderr}")

    # Proofs

    @staticmethod
    def share(entries):
        """(part of the bytes that went over companions, bytes over companions)."""
        companion = sum(entry["bytes"]["companionSent"] + entry["bytes"]["companionReceived"] for entry in entries)
        tcp = sum(entry["bytes"]["tcpSent"] + entry["bytes"]["tcpReceived"] for entry in entries)
        return (companion / (companion + tcp) if companion + tcp else 0.0), companion

    def prove_companion(self, port, while_running=None, minimum_bytes=100_000, both_ends=True, seconds=20, share=0.99,
                        minimum_connections=1):
        """Once all live connections of `port` are on companions in every direction that carries data, at least 99 % of the bytes that follow go over
        companions: the switch says so, and the kernel's counters of the same TCP sockets agree. Traffic goes on meanwhile."""
        if settings.plain:
            return None
        entries, kernel = [], []

        def look():
            entries[:] = self.connections(port)
            kernel[:] = kernel_counters(port)
            if while_running and not while_running.running():
                self.fail(f"{while_running.name} ended before the proof\n{describe()}\n{while_running.describe()}")

        def describe():
            return "\n".join([json.dumps(entry) for entry in entries[:12]] + [str(entry) for entry in kernel[:12]])

        def upgraded():
            look()
            kinds = {entry["kind"] for entry in entries}
            # A direction that carries next to nothing (a control connection, the way back of a one-way stream) need not move:
            # its receiver has perhaps never called in.
            def settled(entry, carrier, count):
                return entry[carrier] == "companion" or entry["bytes"][count] < 65536
            return (len(entries) >= minimum_connections and kernel and (not both_ends or kinds == {"connected", "accepted"})
                    and any("companion" in (entry["sendCarrier"], entry["receiveCarrier"]) for entry in entries)
                    and all(settled(entry, "sendCarrier", "tcpSent") and settled(entry, "receiveCarrier", "tcpReceived")
                            for entry in entries))
        self.wait_until(upgraded, f"every connection of port {port} on its companion", seconds, describe)
        overall = self.share(entries)[0]

        def tallies():
            switch = {(entry["local"], entry["peer"]): entry["bytes"] for entry in entries}
            return switch, {(entry["local"], entry["peer"]): entry["sent"] + entry["received"] for entry in kernel}
        before = tallies()
        tally = {}

        def carried():
            """A window of `minimum_bytes` in which companions carried their share. Connections that were just about to move
            when they were looked at have a window to do so, and the next one begins where it ended."""
            nonlocal before
            look()
            now = tallies()
            tally.update(companion=0, tcp=0, kernel=0)
            for key in before[0].keys() & now[0].keys():
                for name, value in now[0][key].items():
                    tally["companion" if name.startswith("companion") else "tcp"] += value - before[0][key][name]
            for key in before[1].keys() & now[1].keys():
                tally["kernel"] += now[1][key] - before[1][key]
            if tally["companion"] + tally["tcp"] < minimum_bytes:
                return None
            before = now
            # By the switch's count and by the kernel's.
            tally["share"] = tally["companion"] / (tally["companion"] + tally["tcp"])
            return tally["share"] >= share and tally["kernel"] <= (1 - share) * tally["companion"] / share
        self.wait_until(carried, f"{minimum_bytes} bytes on port {port}, {share:.0%} of them over companions", seconds,
                        lambda: f"{tally}\n{describe()}")
        note(f"{tally['share']:.3%} over companions after the upgrade, {overall:.1%} at it")
        return list(entries)

    def prove_tcp(self, port, reason, while_running=None, seconds=15):
        """A live connection of `port` is on TCP, both ways, for `reason`."""
        if settings.plain:
            return
        last = []

        def proved():
            last[:] = self.connections(port)
            for entry in last:
                self.assertEqual((entry["bytes"]["companionSent"], entry["bytes"]["companionReceived"]), (0, 0), entry)
            if any(entry["reason"] == reason and entry["sendCarrier"] == entry["receiveCarrier"] == "tcp" for entry in last):
                return True
            if while_running and not while_running.running():
                self.fail(f"{while_running.name} ended; no socket had the reason {reason}\n{describe()}")
            return None

        def describe():
            return "\n".join(json.dumps(entry) for entry in last[:12])
        self.wait_until(proved, f"a connection of port {port} on TCP with reason {reason}", seconds, describe)
