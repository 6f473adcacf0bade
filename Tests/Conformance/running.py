"""One unit of a suite in one mode: a private service, a time limit for each test, and nobody left behind."""
import concurrent.futures
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CACHE = os.path.join(ROOT, ".build", "conformance")
MODES = {"native": None, "default": [], "eager": ["--upgrade", "eager"]}


def become_subreaper():
    """Orphans of what we start become our children, so that none can hide."""
    PR_SET_CHILD_SUBREAPER = 36
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def restore_signals():
    """Whoever starts us in the background of a script has SIGINT ignored, and programs inherit that: tests that interrupt
    themselves would wait for ever."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def isolate():
    """A network of its own, with nothing but loopback: suites with fixed ports run side by side, and reach nobody."""
    CLONE_NEWNET = 0x40000000
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare: suites with fixed ports need root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def children(pid):
    """Of all its threads: the kernel lists a child with the thread that made it."""
    found = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += [int(word) for word in file.read().split()]
    except OSError:
        pass
    return found


def descendants():
    found, queue = [], [os.getpid()]
    while queue:
        for pid in children(queue.pop()):
            found.append(pid)
            queue.append(pid)
    return found


def state(pid):
    """The letter of /proc/PID/stat and the command line, for messages."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            letter = file.read().rsplit(b")", 1)[1].split()[0].decode()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return letter, file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, IndexError):
        return "X", ""


def where_it_sleeps(pid):
    """Kernel stack and system call of each thread, if the kernel tells."""
    lines = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/wchan") as file:
                channel = file.read()
            with open(f"/proc/{pid}/task/{thread}/syscall") as file:
                lines.append(f"    thread {thread}: {channel or '-'}; system call {file.read().strip()}")
    except OSError:
        pass
    return lines


class Run:
    """Where a unit runs: directories, environment, service. Use as a context."""

    def __init__(self, mode, tools, keep=False):
        self.mode = mode
        self.tools = tools
        self.keep = keep
        self.companion_bytes = 0
        self.pairs = 0
        self.complaints = []

    def __enter__(self):
        # Short: suites make Unix sockets below it, whose names have a limit.
        self.directory = tempfile.mkdtemp(prefix="ssc-")
        self.scratch = os.path.join(self.directory, "t")
        os.mkdir(self.scratch)
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": self.scratch, "TMPDIR": self.scratch,
            "LANG": "C.UTF-8", "TERM": "dumb"}
        self.service = None
        if MODES[self.mode] is not None:
            private = os.path.join(self.directory, "s")
            os.mkdir(private, 0o700)
            self.socket = os.path.join(private, "s")
            self.service = subprocess.Popen([os.path.join(self.tools, "sockswitchd"), "--socket", self.socket],
                                            stdin=subprocess.DEVNULL, env=self.environment)
            deadline = time.monotonic() + 20
            while self.status() is None:
                if time.monotonic() > deadline or self.service.poll() is not None:
                    raise RuntimeError("the service did not start")
                time.sleep(0.01)
        return self

    def command(self, arguments):
        if self.service is None:
            return list(arguments)
        return [os.path.join(self.tools, "sockswitch"), "run", "--service", self.socket, "--no-start", "-q",
                *MODES[self.mode], "--", *arguments]

    def status(self):
        answer = subprocess.run([os.path.join(self.tools, "sockswitch"), "status", "--json", "--service", self.socket],
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.environment)
        return json.loads(answer.stdout) if answer.returncode == 0 else None

    def __exit__(self, *_):
        if self.service is not None:
            status = self.status()
            if status is None or self.service.poll() is not None:
                self.complaints.append("the service did not live to the end")
            else:
                self.companion_bytes = status["totals"]["companionSent"] + status["totals"]["companionReceived"]
                self.pairs = status["totals"]["paired"]
                if status["totals"]["dismissed"]:
                    self.complaints.append(f"the service dismissed {status['totals']['dismissed']} clients")
            self.service.terminate()
            self.service.wait(20)
        if not self.keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, arguments, log, cwd=None, environment=None):
        return subprocess.Popen(self.command(arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                cwd=cwd or self.scratch, env={**self.environment, **(environment or {})},
                                start_new_session=True)

    def end(self, process):
        """Kills what the unit started and left, its process group or not."""
        ours = {self.service.pid} if self.service else set()
        deadline = time.monotonic() + 20
        while True:
            left = [pid for pid in descendants() if pid not in ours]
            if process.poll() is not None:
                left = [pid for pid in left if pid != process.pid]
            living = [pid for pid in left if state(pid)[0] not in "ZX"]
            for pid in living:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for pid in children(os.getpid()):
                if pid not in ours and pid != process.pid and state(pid)[0] == "Z":
                    try:
                        os.waitpid(pid, os.WNOHANG)
                    except ChildProcessError:
                        pass
            if not living or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        process.wait(20)


def describe_hang(leader):
    lines = ["still running:"]
    for pid in [leader, *descendants()]:
        letter, command = state(pid)
        if letter not in "ZX":
            lines.append(f"  {pid} {letter} {command[:160]}")
            lines += where_it_sleeps(pid)
    return "\n".join(dict.fromkeys(lines))


def abort(process):
    """Lets the program say where it is (Python's faulthandler prints all threads)."""
    if process.poll() is None:
        process.send_signal(signal.SIGABRT)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            pass


def run_events(run, make_command, log_path, test_seconds, unit_seconds, excluded):
    """A unit whose program writes events (python_suite.py): {id: (outcome, text)}.

    A test without an end after `test_seconds` is a hang, one in which the program dies a crash; the tests behind it still
    get their turn.
    """
    results = {}
    skip_path = os.path.join(run.directory, "skip")
    events_path = os.path.join(run.directory, "events")
    had = set()
    unit_end = time.monotonic() + unit_seconds
    with open(log_path, "wb") as log:
        while True:
            with open(skip_path, "w") as file:
                file.write("\n".join(sorted(had | set(excluded))))
            open(events_path, "w").close()
            process = run.start(make_command(events_path, skip_path), log)
            current, finished, offset = None, False, 0
            last = time.monotonic()
            hung = False
            began_with = len(had)
            while True:
                ended = process.poll() is not None
                with open(events_path, "rb") as file:
                    file.seek(offset)
                    text = file.read()
                text = text[:text.rfind(b"\n") + 1]
                offset += len(text)
                for line in text.splitlines():
                    event = json.loads(line)
                    last = time.monotonic()
                    if "begin" in event:
                        current = event["begin"]
                        had.add(current)
                    elif "end" in event:
                        if event["end"] == current:
                            current = None
                        results[event["end"]] = (event["outcome"], event["text"])
                    elif "excluded" in event:
                        if event["excluded"] in excluded:
                            results[event["excluded"]] = ("excluded", "")
                    else:
                        finished = True
                if ended:
                    break
                now = time.monotonic()
                if now - last > test_seconds or now > unit_end:
                    hung = True
                    results[current or "(outside of tests)"] = ("hung", describe_hang(process.pid))
                    abort(process)
                    break
                time.sleep(0.02)
            run.end(process)
            if finished and not hung:
                if process.returncode != 0:
                    results["(outside of tests)"] = ("crashed", f"the program ended with {process.returncode}")
                return results
            if not hung:
                results[current or "(outside of tests)"] = ("crashed", f"the program ended with {process.returncode}")
            if len(had) == began_with or time.monotonic() > unit_end:
                return results


def run_program(run, arguments, log_path, seconds, cwd=None, environment=None):
    """A unit whose program prints its results: (exit status or None if it hung, what it printed)."""
    with open(log_path, "wb") as log:
        process = run.start(arguments, log, cwd, environment)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
            log.write(("\n" + describe_hang(process.pid) + "\n").encode())
            abort(process)
        run.end(process)
    with open(log_path, errors="replace") as file:
        return status, file.read()


def end_session(leader):
    """Kills what is left of a program that leads a session of its own, and its children."""
    for pid in descendants():
        try:
            if os.getsid(pid) == leader.pid:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    leader.wait(20)


def run_each(run, tests, log_path, seconds, cwd, parallel=1):
    """A unit of which each test is a program by itself: {id: (exit status or None if it hung, what it printed)}.

    `tests` is {id: (arguments, environment)}. Tests that sleep most of the time may run side by side.
    """
    def one(test):
        arguments, environment = tests[test]
        with tempfile.TemporaryFile(dir=run.directory) as output:
            process = run.start(arguments, output, cwd, environment)
            hang = ""
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status, hang = None, "\n" + describe_hang(process.pid) + "\n"
            end_session(process)
            output.seek(0)
            return status, output.read().decode(errors="replace") + hang

    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        ends = dict(zip(tests, pool.map(one, tests)))
    with open(log_path, "w") as log:
        for test, (status, text) in ends.items():
            log.write(f"== {test}: {status}\n{text}\n")
    return ends


def tell_end(results, status, text, expected=(0, 1)):
    """A program that hung or crashed is an outcome of its own."""
    if status is None:
        results["(whole program)"] = ("hung", text[-6000:])
    elif status not in expected:
        results["(whole program)"] = ("crashed", f"ended with {status}\n{text[-4000:]}")
    return results
