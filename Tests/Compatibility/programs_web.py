"""Web servers, proxies and clients: nginx, haproxy, curl, wget, ab."""
import os
import pwd
import signal

from harness import find_program, processes, settings
from matrix import BOTH, COMPANION, NONE, PEER_NOT_SWITCHED, STAYS, ProgramCase, only_server_switched, row
from test_web import file_digest, seeded_file

LARGE = 48 << 20


class WebCase(ProgramCase):
    """With nginx as the server, whoever is tested."""

    def start_nginx(self, switched=None, daemon="off", keeps_environment=False):
        """Serves a small and a large file on a port of its own, which is returned."""
        port = self.new_port()
        root = self.path("www")
        if not os.path.isdir(root):
            os.mkdir(root)
            os.chmod(root, 0o755)
            self.small = seeded_file(os.path.join(root, "small"), 700, settings.seed)
            self.large = seeded_file(os.path.join(root, "large"), LARGE, settings.seed + 1)
        prefix = self.path(f"nginx-{port}")
        os.mkdir(prefix)
        for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
            os.mkdir(os.path.join(prefix, name))
        user = f"user {pwd.getpwuid(os.geteuid()).pw_name};" if os.geteuid() == 0 else ""
        # nginx clears its environment, but for what it is told to keep.
        names = ("LD_PRELOAD", "SOCKSWITCH_SERVICE") if keeps_environment else ()
        environment = "\n".join(f"env {name};" for name in names)
        temporary = "\n".join(f"{name}_temp_path {prefix}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
        self.configuration = self.write(f"nginx-{port}.conf", f"""
            daemon {daemon};
            {environment}
            worker_processes 2;
            {user}
            pid {prefix}/nginx.pid;
            error_log stderr warn;
            events {{ worker_connections 256; }}
            http {{
                access_log off;
                keepalive_requests 1000000;
                client_body_temp_path {prefix}/body;
                {temporary}
                server {{
                    listen 127.0.0.1:{port};
                    root {root};
                }}
            }}""")
        self.pid_file = os.path.join(prefix, "nginx.pid")
        command = ["nginx", "-e", "stderr", "-p", prefix, "-c", self.configuration]
        self.nginx = self.start(command, self.ends.server if switched is None else switched)
        self.wait_listening(port, self.nginx if daemon == "off" else None)
        return port

    def master(self):
        with open(self.pid_file) as file:
            return int(file.read())

    def workers(self, master):
        return [pid for pid, (parent, state) in processes().items() if parent == master and state not in "ZX"]

    def fetch(self, port, name, scheme="http", *options):
        target = self.path("fetched")
        self.client(["curl", "-sS", "--fail", *options, "-o", target, f"{scheme}://127.0.0.1:{port}/{name}"])
        return file_digest(target)

    def fetch_all(self, port):
        """A small file often, on one connection if the server keeps it, and a large one; the bodies are compared with what was
        written."""
        many = self.client(["curl", "-sS", "--fail", "-w", "%{http_code}\\n", "-o", self.path("fetched"),
                            f"http://127.0.0.1:{port}/small?[1-200]"])
        return many.count("200\n"), self.fetch(port, "small") == self.small, self.fetch(port, "large") == self.large


class Nginx(WebCase):
    program = "nginx"
    packages = ("nginx-light",)

    @row("two workers, keep-alive and large files", COMPANION)
    def test_workers(self, ends):
        return self.fetch_all(self.start_nginx())

    @row("reload (HUP): old workers finish their downloads, new ones take over", COMPANION)
    def test_reload(self, ends):
        port = self.start_nginx()
        before = self.fetch_all(port)
        old = self.workers(self.master())
        slow = self.start(["curl", "-sS", "--fail", "--limit-rate", "16M", "-o", self.path("slow"),
                           f"http://127.0.0.1:{port}/large"], ends.client)
        self.wait_until(lambda: os.path.exists(self.path("slow")) and os.path.getsize(self.path("slow")) > 1 << 20,
                        "the download runs", 20, slow.describe)
        os.kill(self.master(), signal.SIGHUP)
        self.wait_until(lambda: len(set(self.workers(self.master())) - set(old)) == 2, "two new workers")
        after = self.fetch_all(port)
        slow.wait()
        self.wait_until(lambda: not set(self.workers(self.master())) & set(old), "the old workers end")
        return before, after, file_digest(self.path("slow")) == self.large

    def upgrade_binary(self, keeps_environment):
        # As a daemon only: nginx takes the signal for a mistake as long as the process that started it lives.
        port = self.start_nginx(daemon="on", keeps_environment=keeps_environment)
        self.nginx.wait()
        before = self.fetch_all(port)
        old = self.master()
        os.kill(old, signal.SIGUSR2)

        def fresh():
            if not os.path.exists(self.pid_file):
                return None
            with open(self.pid_file) as file:
                text = file.read().strip()
            return int(text) if text and int(text) != old and self.workers(int(text)) else None
        new = self.wait_until(fresh, "the new master and its workers", 20, self.nginx.describe)
        os.kill(old, signal.SIGWINCH)
        self.wait_until(lambda: [pid for pid in self.workers(old) if pid != new] == [], "the old workers end")
        os.kill(old, signal.SIGQUIT)
        self.wait_for_end(old)
        self.watch_from_here()
        after = self.fetch_all(port)
        os.kill(new, signal.SIGQUIT)
        self.wait_for_end(new)
        return before, after

    def wait_for_end(self, pid):
        self.wait_until(lambda: processes().get(pid, (0, "Z"))[1] == "Z", f"process {pid} ends")

    @row("binary upgrade (USR2, WINCH, QUIT): nginx starts the new program without `LD_PRELOAD`", STAYS, PEER_NOT_SWITCHED)
    def test_binary_upgrade(self, ends):
        return self.upgrade_binary(False)

    @row("binary upgrade with `env LD_PRELOAD; env SOCKSWITCH_SERVICE;`: the new program accepts on the inherited listener", COMPANION)
    def test_binary_upgrade_switched(self, ends):
        return self.upgrade_binary(True)

    @only_server_switched("two workers")
    def test_only_server(self, ends):
        return self.fetch_all(self.start_nginx())


class HAProxy(WebCase):
    program = "haproxy"
    packages = ("haproxy",)

    def start_haproxy(self, backend, *options, port=None, name="haproxy"):
        self.front = port or self.new_port()
        self.configuration = self.write("haproxy.cfg", f"""
global
    stats socket {self.path('haproxy.sock')} expose-fd listeners
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    {'option ' + ' '.join(options) if options else ''}
frontend front
    bind 127.0.0.1:{self.front}
    default_backend back
backend back
    server one 127.0.0.1:{backend}
""")
        return self.server(["haproxy", "-db", "-f", self.configuration], self.front, name=name)

    @row("HTTP to a backend", COMPANION)
    def test_proxy(self, ends):
        self.start_haproxy(self.start_nginx())
        return self.fetch_all(self.front)

    @row("HTTP to a backend, `option splice-auto`: splices where it may", COMPANION)
    def test_splice(self, ends):
        self.start_haproxy(self.start_nginx(), "splice-auto")
        return self.fetch_all(self.front)

    @row("reload with `-sf` and `-x`: listeners passed over a Unix socket", COMPANION)
    def test_reload(self, ends):
        old = self.start_haproxy(self.start_nginx())
        before = self.fetch_all(self.front)
        slow = self.start(["curl", "-sS", "--fail", "--limit-rate", "16M", "-o", self.path("slow"),
                           f"http://127.0.0.1:{self.front}/large"], ends.client)
        self.wait_until(lambda: os.path.exists(self.path("slow")) and os.path.getsize(self.path("slow")) > 1 << 20,
                        "the download runs", 20, slow.describe)
        self.server(["haproxy", "-db", "-f", self.configuration, "-sf", str(old.pid), "-x", self.path("haproxy.sock")],
                    name="haproxy-again")
        slow.wait()
        old.wait()
        return before, self.fetch_all(self.front), file_digest(self.path("slow")) == self.large

    @row("only haproxy switched, neither client nor backend", STAYS, PEER_NOT_SWITCHED)
    def test_only_proxy(self, ends):
        proxy = ends
        self.ends = NONE
        backend = self.start_nginx()
        self.ends = proxy
        self.start_haproxy(backend)
        self.ends = NONE
        return self.fetch_all(self.front)


class Curl(WebCase):
    program = "curl"
    packages = ("curl",)

    @row("download, upload, parallel transfers", COMPANION)
    def test_transfers(self, ends):
        port = self.start_nginx()
        names = [self.path(f"part-{number}") for number in range(4)]
        self.client(["curl", "-sS", "--fail", "-Z", *(word for name in names for word in
                     ("-o", name, f"http://127.0.0.1:{port}/large"))])
        return [file_digest(name) == self.large for name in names], self.fetch_all(port)


class Wget(WebCase):
    program = "wget"
    packages = ("wget",)

    @row("download", COMPANION)
    def test_download(self, ends):
        port = self.start_nginx()
        self.client(["wget", "-q", "-O", self.path("got"), f"http://127.0.0.1:{port}/large"])
        return file_digest(self.path("got")) == self.large


class ApacheBench(WebCase):
    program = "ab"
    packages = ("apache2-utils",)

    @row("keep-alive, 8 connections", COMPANION)
    def test_keep_alive(self, ends):
        port = self.start_nginx()
        said = self.client(["ab", "-q", "-k", "-n", "20000", "-c", "8", f"http://127.0.0.1:{port}/small"])
        return [line for line in said.splitlines() if line.startswith(("Complete", "Failed", "HTML", "Total transferred"))]

    @row("a connection a request", STAYS, "notWorthItYet")
    def test_without_keep_alive(self, ends):
        port = self.start_nginx()
        said = self.client(["ab", "-q", "-n", "2000", "-c", "8", f"http://127.0.0.1:{port}/small"])
        return [line for line in said.splitlines() if line.startswith(("Complete", "Failed", "HTML", "Total transferred"))]
