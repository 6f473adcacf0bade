"""Servers on language runtimes: node, Java NIO, Python's WSGI and ASGI servers, Go."""
import os
import shutil
import signal
import subprocess
import tempfile

from harness import find_program, processes, settings
from matrix import COMPANION, HERE, PEER_NOT_SWITCHED, STAYS, ProgramCase, only_server_switched, row
from test_web import file_digest, seeded_file

GUESTS = os.path.join(HERE, "guests")


class Node(ProgramCase):
    program = "node"
    version_command = ("node", "--version")

    def talk(self):
        port = self.new_port()
        server = self.server(["node", os.path.join(GUESTS, "server.js"), str(port)], port)
        said = self.client(["node", os.path.join(GUESTS, "client.js"), str(port)])
        self.end(server)
        return said

    @row("`http` server and client, keep-alive", COMPANION)
    def test_http(self, ends):
        return self.talk()

    @only_server_switched("`http`")
    def test_http_only_server(self, ends):
        return self.talk()


class Java(ProgramCase):
    program = "Java"
    version_command = ("java", "-version")

    @classmethod
    def setUpClass(cls):
        cls.classes = tempfile.mkdtemp(prefix="sockswitch-java-")
        subprocess.run([find_program("javac"), "-d", cls.classes, os.path.join(GUESTS, "Nio.java")], check=True)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.classes, ignore_errors=True)

    def talk(self):
        port = self.new_port()
        seeded_file(self.path("file"), 16 << 20, settings.seed)
        java = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-cp", self.classes, "Nio"]
        server = self.server([*java, "server", str(port), self.path("file")], port)
        said = self.client([*java, "client", str(port)])
        # 128 and the signal's number, as the virtual machine says it.
        self.end(server, expected=143)
        return said

    @row("NIO selector server, gathering writes, `transferTo`; three client threads", COMPANION)
    def test_nio(self, ends):
        return self.talk()

    @only_server_switched("NIO")
    def test_nio_only_server(self, ends):
        return self.talk()


class PythonServer(ProgramCase):
    def exchange(self, port):
        body = self.path("body")
        digest = seeded_file(body, 8 << 20, settings.seed)
        many = self.client(["curl", "-sS", "--fail", "-w", "%{http_code}\\n", "-o", self.path("got"),
                            f"http://127.0.0.1:{port}/3000?[1-200]"]).count("200\n")
        self.client(["curl", "-sS", "--fail", "-o", self.path("got"), f"http://127.0.0.1:{port}/{32 << 20}"])
        posted = self.client(["curl", "-sS", "--fail", "-H", "Expect:", "--data-binary", f"@{body}", f"http://127.0.0.1:{port}/"])
        return many, file_digest(self.path("got")), posted == digest


class Gunicorn(PythonServer):
    program = "gunicorn"
    packages = ("gunicorn",)

    def start_gunicorn(self, *options):
        self.port = self.new_port()
        self.gunicorn = self.server(
            ["gunicorn", "--bind", f"127.0.0.1:{self.port}", "--workers", "2", "--worker-tmp-dir", self.place, *options,
             "application:wsgi"], self.port, environment={"PYTHONPATH": GUESTS, "PYTHONDONTWRITEBYTECODE": "1"})

    @row("two pre-forked workers, a connection a request", COMPANION)
    def test_sync(self, ends):
        self.start_gunicorn()
        return self.exchange(self.port)

    @row("workers with threads, keep-alive; reload (HUP)", COMPANION)
    def test_threads(self, ends):
        self.start_gunicorn("--worker-class", "gthread", "--threads", "4", "--keep-alive", "30")
        before = self.exchange(self.port)
        old = self.workers()
        os.kill(self.gunicorn.pid, signal.SIGHUP)
        self.wait_until(lambda: len(self.workers()) == 2 and not set(old) & set(self.workers()), "two other workers")
        return before, self.exchange(self.port)

    def workers(self):
        return [pid for pid, (parent, state) in processes().items() if parent == self.gunicorn.pid and state not in "ZX"]


class Uvicorn(PythonServer):
    program = "uvicorn"
    packages = ("uvicorn",)

    def start_uvicorn(self, *options):
        self.port = self.new_port()
        self.server(["uvicorn", "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning", *options,
                     "application:asgi"], self.port, environment={"PYTHONPATH": GUESTS, "PYTHONDONTWRITEBYTECODE": "1"})
        self.wait_until(lambda: subprocess.run(
            [find_program("curl"), "-s", "--fail", "-o", os.devnull, f"http://127.0.0.1:{self.port}/1"], check=False).returncode == 0,
            "uvicorn answers")

    @row("one process, asyncio", COMPANION)
    def test_one(self, ends):
        self.start_uvicorn()
        return self.exchange(self.port)

    @row("two workers, spawned: what they accept on the inherited listener", COMPANION)
    def test_workers(self, ends):
        self.start_uvicorn("--workers", "2")
        return self.exchange(self.port)


class Go(ProgramCase):
    program = "Go"
    packages = ("golang-go",)

    @classmethod
    def setUpClass(cls):
        cls.built = tempfile.mkdtemp(prefix="sockswitch-go-")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.built, ignore_errors=True)

    def build(self, name, libc):
        target = os.path.join(self.built, name)
        # The compiled standard library is kept between runs.
        environment = {**os.environ, "CGO_ENABLED": "1" if libc else "0", "GO111MODULE": "off", "GOFLAGS": "",
                       "GOCACHE": os.path.join(os.path.dirname(os.path.dirname(HERE)), ".build", "go-cache")}
        if not os.path.exists(target):
            subprocess.run([find_program("go"), "build", "-o", target, os.path.join(GUESTS, "server.go")], env=environment,
                           check=True)
        return target

    def talk(self, program):
        port = self.new_port()
        server = self.server([program, str(port)], port)
        for _ in range(3):
            self.client(["curl", "-sS", "--fail", "-o", self.path("got"), f"http://127.0.0.1:{port}/{16 << 20}"])
        many = self.client(["curl", "-sS", "--fail", "-w", "%{http_code}\\n", "-o", self.path("small"),
                            f"http://127.0.0.1:{port}/500?[1-200]"]).count("200\n")
        if self.ends.server:
            self.said = server.errors
        return file_digest(self.path("got")), many

    @row("statically linked: left alone, `sockswitch run` says why; its client", STAYS, PEER_NOT_SWITCHED)
    def test_static(self, ends):
        result = self.talk(self.build("static", False))
        if ends.server:
            self.assertIn("static", self.said)
        return result

    @row("linked with libc, which it does not call for sockets; its client", STAYS, PEER_NOT_SWITCHED)
    def test_dynamic(self, ends):
        return self.talk(self.build("dynamic", True))
