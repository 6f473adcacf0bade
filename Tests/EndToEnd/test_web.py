"""nginx with wrk and curl, and Python's own web server with curl."""
import grp
import hashlib
import os
import pwd
import random
import re
import signal
import sys

from harness import PROGRAMS, Case, descriptors, free_port, processes, settings


def seeded_file(path, size, seed):
    """Random bytes; the digest is returned."""
    rng, digest = random.Random(seed), hashlib.sha256()
    with open(path, "wb") as file:
        while size:
            piece = rng.randbytes(min(size, 1 << 20))
            digest.update(piece)
            file.write(piece)
            size -= len(piece)
    return digest.hexdigest()


def file_digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class Web(Case):
    limit = 150

    def fetch(self, path, wanted, switched=True, arguments=()):
        target = os.path.join(self.directory, "fetched")
        curl = self.run_program(
            ["curl", "-sS", "--fail", "-o", target, *arguments, f"http://127.0.0.1:{self.port}/{path}"], switched, 140)
        self.assertEqual(file_digest(target), wanted, f"checksum of {path}")
        os.unlink(target)
        return curl

    def slow_fetch(self, path, rate, switched=True, to="/dev/null"):
        """A transfer that lasts long enough to be looked at."""
        return self.start([sys.executable, os.path.join(PROGRAMS, "paced.py"), "127.0.0.1", str(self.port), f"/{path}", str(rate), to],
                          switched)


class Nginx(Web):
    def start_server(self, switched=True, user=None):
        self.port = free_port()
        root = os.path.join(self.directory, "www")
        os.mkdir(root)
        os.chmod(root, 0o755)
        self.small = seeded_file(os.path.join(root, "small"), 512, settings.seed)
        self.large = seeded_file(os.path.join(root, "large"), 32 << 20, settings.seed + 1)
        for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
            os.mkdir(os.path.join(self.directory, name))
        configuration = os.path.join(self.directory, "nginx.conf")
        me = pwd.getpwuid(os.geteuid()).pw_name
        with open(configuration, "w") as file:
            file.write(f"""
                daemon off;
                worker_processes 2;
                {f'user {user or me};' if os.geteuid() == 0 else ''}
                pid {self.directory}/nginx.pid;
                error_log stderr warn;
                events {{ worker_connections 512; }}
                http {{
                    access_log off;
                    keepalive_requests 100000000;
                    sendfile on;
                    client_body_temp_path {self.directory}/body;
                    proxy_temp_path {self.directory}/proxy;
                    fastcgi_temp_path {self.directory}/fastcgi;
                    uwsgi_temp_path {self.directory}/uwsgi;
                    scgi_temp_path {self.directory}/scgi;
                    server {{
                        listen 127.0.0.1:{self.port};
                        root {root};
                        location = /small {{ default_type text/plain; }}
                    }}
                    server {{
                        listen 127.0.0.1:{self.port + 0};
                        server_name nowhere;
                        root {root};
                        sendfile off;
                    }}
                }}""")
        self.server = self.start(["nginx", "-e", "stderr", "-p", self.directory, "-c", configuration], switched)
        self.wait_listening(self.port, self.server)

    def wrk(self, seconds, switched=True):
        return self.start(["wrk", "-t2", "-c16", f"-d{seconds}s", f"http://127.0.0.1:{self.port}/small"], switched)

    def check_wrk(self, wrk):
        wrk.wait()
        self.assertNotIn("Socket errors", wrk.output)
        self.assertNotIn("Non-2xx", wrk.output)
        requests = re.search(r"(\d+) requests in", wrk.output)
        self.assertTrue(requests and int(requests.group(1)) > 100, wrk.describe())

    def test_wrk(self):
        self.start_server()
        wrk = self.wrk(4)
        self.prove_companion(self.port, wrk, minimum_bytes=1_000_000)
        self.check_wrk(wrk)
        self.fetch("small", self.small)

    def test_curl(self):
        self.start_server()
        self.fetch("small", self.small)
        self.fetch("large", self.large)
        self.fetch("large", self.large, arguments=["-H", "Host: nowhere"])
        slow = self.slow_fetch("large", 8)
        self.prove_companion(self.port, slow, minimum_bytes=1 << 20)
        self.assertTrue(slow.running(), slow.describe())

    def test_many_on_one_connection(self):
        """curl asks 300 times on one kept connection."""
        self.start_server()
        many = self.run_program(
            ["curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{num_connects}\\n",
             f"http://127.0.0.1:{self.port}/small?[1-300]"])
        self.assertEqual(sum(map(int, many.output.split())), 1)

    def test_workers_of_another_user(self):
        """As most installations run it: the workers give up root. Whatever carrier it gets, it works."""
        if os.geteuid() != 0:
            self.skipTest("needs root")
        self.start_server(user=f"nobody {grp.getgrgid(pwd.getpwnam('nobody').pw_gid).gr_name}")
        self.fetch("large", self.large)
        self.check_wrk(self.wrk(2))

    def test_reload(self):
        """New workers take over the listener; the old ones finish the download they are at, on its companion."""
        self.start_server()
        old = self.wait_until(lambda: self.workers(2), "two workers")
        slow = self.slow_fetch("large", 8, to="slow")
        self.prove_companion(self.port, slow, minimum_bytes=1 << 20)
        slow.kill(signal.SIGSTOP)
        self.server.kill(signal.SIGHUP)
        new = self.wait_until(lambda: self.workers(2, old), "two new workers", describe=self.server.describe)
        # Until then they accept, and then soon end what they have accepted: wrk would count that as an error on TCP, too.
        self.wait_until(lambda: not any(self.has_listener(pid) for pid in old), "the old workers accept no more")
        wrk = self.wrk(3)
        if not settings.plain:
            self.wait_until(lambda: self.on_companions(new), "a new worker on companions", 20, lambda: str(self.connections(self.port)))
            self.assertTrue(self.on_companions(old), "the download is no longer on its companion")
        self.check_wrk(wrk)
        self.assertTrue(slow.running(), slow.describe())
        slow.kill(signal.SIGCONT)
        slow.wait()
        self.assertEqual(file_digest(os.path.join(self.directory, "slow")), self.large)
        self.wait_until(lambda: not set(self.workers(2)) & set(old), "the old workers end", describe=self.server.describe)

    def workers(self, count, others=()):
        """The workers that are not among `others`, once there are `count`; nginx is the started program itself."""
        found = [pid for pid, (parent, state) in processes().items()
                 if parent == self.server.pid and state not in "ZX" and pid not in others]
        return found if len(found) >= count else []

    def has_listener(self, pid):
        with open("/proc/net/tcp") as file:
            listeners = {f"socket:[{fields[9]}]" for fields in map(str.split, file.readlines()[1:])
                         if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == self.port}
        self.assertTrue(listeners)
        return not listeners.isdisjoint(descriptors(pid).values())

    def on_companions(self, pids):
        return any(entry["kind"] == "accepted" and entry["sendCarrier"] == "companion" and set(entry["pids"]) & set(pids)
                   for entry in self.connections(self.port))

    def one_sided(self, server, client):
        self.start_server(server)
        self.fetch("large", self.large, client)
        wrk = self.wrk(3, client)
        self.prove_tcp(self.port, "peerNotSwitched", wrk)
        self.check_wrk(wrk)

    def test_only_server_switched(self):
        self.one_sided(True, False)

    def test_only_client_switched(self):
        self.one_sided(False, True)


class PythonServer(Web):
    def start_server(self, size, switched=True):
        self.port = free_port()
        root = os.path.join(self.directory, "www")
        os.mkdir(root)
        self.digest = seeded_file(os.path.join(root, "file"), size, settings.seed)
        self.server = self.start(
            [os.path.realpath(sys.executable), "-m", "http.server", str(self.port), "--bind", "127.0.0.1",
             "--directory", root], switched, name="http.server")
        self.wait_listening(self.port, self.server)

    def test_large_file(self):
        self.start_server(1 << 30 if settings.long else 128 << 20)
        self.fetch("file", self.digest)
        slow = self.slow_fetch("file", 24)
        self.prove_companion(self.port, slow, minimum_bytes=1 << 20)

    def one_sided(self, server, client):
        self.start_server(24 << 20, server)
        self.fetch("file", self.digest, client)
        slow = self.slow_fetch("file", 4, client)
        self.prove_tcp(self.port, "peerNotSwitched", slow)

    def test_only_server_switched(self):
        self.one_sided(True, False)

    def test_only_client_switched(self):
        self.one_sided(False, True)
